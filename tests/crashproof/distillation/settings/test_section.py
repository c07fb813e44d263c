import pytest
from pydantic import Field, ValidationError

from crashproof.distillation.settings.section import Section, validated
from crashproof.errors import ConfigError


class Inner(Section):
    temperature: float = Field(default=1.0, gt=0)
    steps: int = 3


class Outer(Section):
    inner: Inner = Inner()
    seed: int = 0


def test_what_is_left_out_has_its_default() -> None:
    assert Outer(inner=Inner(steps=5), seed=0) == validated(Outer, {"inner": {"steps": 5}})


@pytest.mark.parametrize(
    "content, message",
    [
        ({"sed": 1}, r"Unknown config key sed \(did you mean seed\?\)"),
        ({"inner": {"temprature": 1}}, r"Unknown config key inner.temprature \(did you mean inner.temperature\?\)"),
        ({"inner": {"zzz": 1}}, r"Unknown config key inner.zzz \(known here: steps, temperature\)"),
        ({"seed": {"deeper": 1}}, r"Config key seed: Input should be a valid integer"),
        ({"inner": {"temperature": 0}}, r"Config key inner.temperature: Input should be greater than 0, got 0"),
        ({"inner": 3}, r"Config key inner: .* got 3"),
        ({"sed": 1, "inner": {"steps": "x"}}, r"inner.steps: .*got 'x'.*Unknown config key sed"),
    ],
    ids=["a typo", "a typo inside", "nothing near", "too deep", "out of range", "no section", "two at once"],
)
def test_each_mistake_is_named_by_its_whole_path(content: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validated(Outer, content)


def test_a_section_does_not_change_under_its_readers() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Outer().seed = 1  # type: ignore[misc]
