from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

from crashproof import AlertSettings
from crashproof.distillation.settings.load import files_and_overrides, load_config
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.errors import ConfigError

MINIMAL = """
model: {vocab_size: 32000, d_model: 128}
train: {batch_size: 2, steps: 10}
progress: {checkpoint_interval: 5}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_it(text: str, name: str = "a.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_it


def test_the_minimal_config_says_enough(write: Write) -> None:
    config = load_config(KdConfig, [write(MINIMAL)])

    assert (32000, 128, 2, 10, 5) == (
        config.student.vocab_size,
        config.student.d_model,
        config.train.batch_size,
        config.train.steps,
        config.progress.checkpoint_interval,
    )


def test_without_any_file_everything_has_a_default() -> None:
    assert load_config(KdConfig, []).train.steps >= 1


def test_the_quickstart_is_a_config() -> None:
    assert 200 == load_config(KdConfig, [Path(__file__).parents[4] / "configs" / "quickstart.yaml"]).train.steps


def test_a_config_for_captured_logits_is_laid_over_the_quickstart() -> None:
    folder = Path(__file__).parents[4] / "configs"

    config = load_config(KdConfig, [folder / "quickstart.yaml", folder / "from_logits.yaml"])

    assert ("logits", 0.0, 2.0) == (config.teacher.kind, config.loss.intermediate, config.loss.temperature)


def test_the_student_may_be_called_model(write: Write) -> None:
    by_one_name = load_config(KdConfig, [write("model: {d_model: 32}")])

    assert load_config(KdConfig, [write("student: {d_model: 32}")]) == by_one_name


def test_both_names_of_the_student_at_once_are_an_error(write: Write) -> None:
    with pytest.raises(ConfigError, match="both student and model"):
        load_config(KdConfig, [write("student: {d_model: 32}")], ["model.num_layers=1"])


def test_later_files_win_key_by_key_then_overrides_then_steps(write: Write) -> None:
    first = write("train: {steps: 1, seed: 1, batch_size: 1, learning_rate: 0.1}")
    second = write("train: {steps: 2, seed: 2, batch_size: 2}", "b.yaml")

    train = load_config(KdConfig, [first, second], ["train.seed=3", "train.steps=3", "train.steps=4"]).train

    assert (4, 3, 2, 0.1) == (train.steps, train.seed, train.batch_size, train.learning_rate)


@pytest.mark.parametrize(
    "override, expected",
    [
        ("data.path=null", None),
        ("data.path=text.jsonl", Path("text.jsonl")),
        ("data.path=a=b.jsonl", Path("a=b.jsonl")),
    ],
    ids=["null", "text", "an equals sign in it"],
)
def test_an_overrides_value_is_read_as_yaml(override: str, expected: Path | None) -> None:
    assert expected == load_config(KdConfig, [], [override]).data.path


def test_the_exponent_that_yaml_takes_for_text_is_a_number() -> None:
    assert 1e-3 == load_config(KdConfig, [], ["train.learning_rate=1e-3"]).train.learning_rate


def test_layers_are_mapped_by_number(write: Write) -> None:
    assert {1: 2, 2: 3} == load_config(KdConfig, [write("loss: {layers: {1: 2, 2: 3}}")]).loss.layers


@pytest.mark.parametrize(
    "text, message",
    [
        ("- train", "must be a mapping, not a list"),
        ("train", "must be a mapping, not a str"),
        ("train: [", "is not valid YAML"),
        ("trian: {steps: 1}", r"Unknown config key trian \(did you mean train\?\)"),
        ("train: {setps: 1}", r"Unknown config key train.setps \(did you mean train.steps\?\)"),
        ("train: {steps: 0}", "train.steps: .*greater than or equal to 1, got 0"),
        ("train: {device: tpu}", "train.device: .*'cpu'.*got 'tpu'"),
        ("loss: {kd: -1}", "loss.kd: .*got -1"),
        ("loss: {kd: .nan}", "loss.kd: .*got nan"),
        ("data: {max_length: 1}", "data.max_length: .*got 1"),
        ("tokenizer: {vocab_size: 200}", "tokenizer.vocab_size: .*258, got 200"),
        ("teacher: {kind: local}", "kind: local and a path belong together"),
        ("teacher: {path: somewhere}", "kind: local and a path belong together"),
        ("teacher: {kind: logits}", "kind: logits and a path belong together"),
        (
            "teacher: {kind: logits, path: there}",
            r"^loss\.intermediate is 0\.1, and a teacher of kind logits .*: set loss\.intermediate to 0\.",
        ),
    ],
    ids=lambda value: value if value.startswith(("- ", "tr", "lo", "da", "to", "te")) else "",
)
def test_a_bad_config_is_explained(write: Write, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(KdConfig, [write(text)])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        load_config(KdConfig, [tmp_path / "nowhere.yaml"])


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x9f")

    with pytest.raises(ConfigError, match=r"binary\.yaml is not valid YAML"):
        load_config(KdConfig, [tmp_path / "binary.yaml"])


@pytest.mark.parametrize("override", ["train.steps", "=3", "train.steps=["], ids=["no value", "no key", "no YAML"])
def test_a_bad_override_is_shown(override: str) -> None:
    with pytest.raises(ConfigError, match=r"is not (an override|valid YAML)"):
        load_config(KdConfig, [], [override])


def test_a_step_count_of_zero_on_the_command_line_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"train\.steps.*got 0"):
        load_config(KdConfig, [], ["train.steps=0"])


def test_a_typo_under_the_name_model_names_the_nearest_key(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"did you mean (model|student)\.d_model"):
        load_config(KdConfig, [write("model: {d_modle: 32}")])


def test_a_key_that_stands_there_twice_is_an_error(write: Write) -> None:
    with pytest.raises(ConfigError, match="train"):
        load_config(KdConfig, [write("train: {steps: 4}\ntrain: {seed: 3}")])


def test_an_infinite_learning_rate_is_an_error(write: Write) -> None:
    with pytest.raises((ConfigError, ValidationError)):
        load_config(KdConfig, [write("train: {learning_rate: .inf}")])


def test_captured_logits_are_a_teacher_without_hidden_states() -> None:
    config = load_config(KdConfig, [], ["teacher.kind=logits", "teacher.path=there", "loss.intermediate=0"])

    assert (Path("there"), False) == (config.teacher.path, config.teacher.is_a_model)


def test_files_are_separated_from_overrides(write: Write, tmp_path: Path) -> None:
    odd = write(MINIMAL, "a=b.yaml")

    told = files_and_overrides([Path("c.yaml"), odd, "data.path=/some/where.jsonl", Path("train.steps=3")])

    assert ([Path("c.yaml"), odd], ["data.path=/some/where.jsonl", "train.steps=3"]) == told


# Alerts.

SECRET = "https://hooks.example.org/very-secret-path"


def test_alerts_are_those_of_the_tracker(write: Write) -> None:
    config = load_config(
        KdConfig,
        [
            write(
                "progress: {alerts: {webhook: 'env:HOOK', slack_webhook: 'https://example.org/s', "
                "command: [notify, --now], kinds: [crashed, complete], disk_low_bytes: 5000, desktop: true}}"
            )
        ],
    )

    assert AlertSettings(
        webhook=SECRET,
        slack_webhook="https://example.org/s",
        command=["notify", "--now"],
        kinds=frozenset({"crashed", "complete"}),
        disk_low_bytes=5000,
        desktop=True,
        budget_dollars=Decimal("2.50"),
    ) == config.progress.alerts.settings({"HOOK": SECRET}, budget=Decimal("2.50"))


def test_a_budget_of_the_alerts_comes_before_the_teachers(write: Write) -> None:
    alerts = load_config(KdConfig, [write("progress: {alerts: {budget_dollars: 1.5}}")]).progress.alerts

    assert Decimal("1.5") == alerts.settings({}, budget=Decimal(9)).budget_dollars


@pytest.mark.parametrize(
    "environment, sentence",
    [
        pytest.param({}, "progress.alerts.webhook is env:HOOK, and HOOK is not set", id="unset"),
        pytest.param({"HOOK": ""}, "progress.alerts.webhook is env:HOOK, and HOOK is not set", id="empty"),
        pytest.param({"HOOK": "very-secret"}, "webhook is not an http", id="no-address"),
    ],
)
def test_an_address_that_the_environment_lacks_is_an_error(
    write: Write, environment: dict[str, str], sentence: str
) -> None:
    alerts = load_config(KdConfig, [write("progress: {alerts: {webhook: 'env:HOOK'}}")]).progress.alerts

    with pytest.raises(ConfigError, match=sentence) as refusal:
        alerts.settings(environment, budget=None)
    assert "very-secret" not in str(refusal.value)


@pytest.mark.parametrize(
    "text, sentence",
    [
        pytest.param("webhok: https://e.org", r"webhok \(did you mean progress.alerts.webhook\?\)", id="key"),
        pytest.param("kinds: [crash]", "Did you mean crashed", id="kind"),
        pytest.param("webhook: 'ftp://very-secret'", "webhook is not an http", id="address"),
        pytest.param("command: [curl, very-secret, 1]", "command is not a program", id="command"),
        pytest.param("disk_low_bytes: -1", "progress.alerts.disk_low_bytes", id="bytes"),
    ],
)
def test_alerts_that_cannot_be_used_are_refused_when_the_config_is_read(
    write: Write, text: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence) as refusal:
        load_config(KdConfig, [write(f"progress: {{alerts: {{{text}}}}}")])
    assert "very-secret" not in str(refusal.value)
