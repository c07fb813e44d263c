from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from crashproof.distillation.models.attention import attend_deterministically
from crashproof.distillation.models.layers import prepare_layers
from crashproof.distillation.settings.train import TrainConfig

IDS = torch.arange(12).view(2, 6)
DEFAULT, WARN, ERROR = 0, 1, 2


class Modes(TorchDispatchMode):
    """What operations that are not deterministic would be, as each operation runs."""

    def __init__(self) -> None:
        super().__init__()
        self.of_attention: list[int] = []
        self.of_others: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mode = torch.get_deterministic_debug_mode()
        if "scaled_dot_product" in str(func):
            self.of_attention.append(mode)
        # Views of queries and results are made beside the kernel.
        elif "mm" in str(func):
            self.of_others.add(mode)
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    mode = torch.get_deterministic_debug_mode()
    yield
    torch.set_deterministic_debug_mode(mode)
    AttentionInterface.register("sdpa", sdpa_attention_forward)


def modes_of_a_step(model: PreTrainedModel) -> Modes:
    model.train()
    with Modes() as modes:
        model(input_ids=IDS, labels=IDS).loss.backward()
    return modes


@pytest.mark.parametrize("checkpoints_activations", [False, True], ids=["kept", "computed twice"])
def test_attention_alone_is_strict_forwards_and_backwards(
    make_model: Callable[..., PreTrainedModel], checkpoints_activations: bool
) -> None:
    model = make_model(num_layers=2)
    train = TrainConfig(checkpoints_activations=checkpoints_activations)
    prepare_layers(model, train, torch.device("cpu"))
    torch.set_deterministic_debug_mode("warn")

    modes = modes_of_a_step(model)

    num_passes = 3 if checkpoints_activations else 2
    assert [ERROR] * 2 * num_passes == modes.of_attention
    assert {WARN} == modes.of_others
    assert WARN == torch.get_deterministic_debug_mode()


@pytest.mark.parametrize("mode", [DEFAULT, ERROR], ids=["anything goes", "errors already"])
def test_where_nothing_warns_nothing_is_changed(make_model: Callable[..., PreTrainedModel], mode: int) -> None:
    attend_deterministically()
    torch.set_deterministic_debug_mode(mode)

    modes = modes_of_a_step(make_model(num_layers=1))

    assert [mode] * 2 == modes.of_attention
    assert {mode} == modes.of_others


def test_the_gradients_are_those_of_plain_attention(make_model: Callable[..., PreTrainedModel]) -> None:
    def gradients(model: PreTrainedModel) -> list[torch.Tensor]:
        modes_of_a_step(model)
        return [each.grad for each in model.parameters() if each.grad is not None]

    torch.set_deterministic_debug_mode("warn")
    expected = gradients(make_model(0))
    attend_deterministically()

    found = gradients(make_model(0))

    assert len(expected) == len(found) > 0
    assert all(map(torch.equal, expected, found))


def test_an_error_in_attention_leaves_warnings_to_the_rest(make_model: Callable[..., PreTrainedModel]) -> None:
    attend_deterministically()
    torch.set_deterministic_debug_mode("warn")
    attend = AttentionInterface()["sdpa"]

    with pytest.raises(AttributeError):
        attend(torch.nn.Identity(), None, None, None, None)

    assert WARN == torch.get_deterministic_debug_mode()


def test_without_gradients_attention_is_strict_too(make_model: Callable[..., PreTrainedModel]) -> None:
    attend_deterministically()
    torch.set_deterministic_debug_mode("warn")

    with torch.no_grad(), Modes() as modes:
        make_model(num_layers=1)(input_ids=IDS)

    assert {ERROR} == set(modes.of_attention)
    assert WARN == torch.get_deterministic_debug_mode()
