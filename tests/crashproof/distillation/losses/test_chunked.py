from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from crashproof.distillation.losses.chunked import values_of_rows
from crashproof.distillation.losses.divergences import cross_entropy_rows
from crashproof.distillation.models.split_model import SplitModel

NUM_ROWS, WIDTH, VOCABULARY = 64, 6, 50


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(2, NUM_ROWS // 2, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def head() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(WIDTH, VOCABULARY)


def targets() -> Tensor:
    return torch.arange(NUM_ROWS) % VOCABULARY


def cross_entropy(logits: Tensor, rows: Tensor) -> Tensor:
    return cross_entropy_rows(logits, targets()[rows])


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, 512])
def test_values_and_gradients_are_those_of_all_logits_at_once(
    hidden: Tensor, head: nn.Linear, chunk_tokens: int
) -> None:
    rows = torch.tensor([3, 5, 6, 20, 63])
    dense = functional.cross_entropy(head(hidden.flatten(0, 1)[rows]), targets()[rows], reduction="none")
    weigh = torch.arange(1.0, 6.0)
    expected = torch.autograd.grad((dense * weigh).sum(), [hidden, *head.parameters()])

    values = values_of_rows(hidden, head, rows, {"ce": cross_entropy}, chunk_tokens=chunk_tokens)["ce"]
    gradients = torch.autograd.grad((values * weigh).sum(), [hidden, *head.parameters()])

    torch.testing.assert_close(values, dense)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_several_losses_share_one_pass_over_the_head(hidden: Tensor, head: nn.Linear) -> None:
    calls = []

    def counted(states: Tensor) -> Tensor:
        calls.append(len(states))
        made: Tensor = head(states)
        return made

    losses = {"ce": cross_entropy, "square": lambda logits, rows: logits.square().sum(dim=-1)}

    values = values_of_rows(hidden, counted, torch.arange(10), losses, chunk_tokens=4)

    assert ["ce", "square"] == list(values)
    assert [4, 4, 2] == calls


def test_without_rows_the_head_gets_the_gradient_zero(hidden: Tensor, head: nn.Linear) -> None:
    nothing = torch.zeros(0, dtype=torch.long)

    values = values_of_rows(hidden, head, nothing, {"ce": cross_entropy}, chunk_tokens=4)["ce"]
    values.sum().backward()

    assert 0 == len(values)
    assert head.weight.grad is not None
    assert 0 == head.weight.grad.abs().sum()


class _LargeStorages(TorchDispatchMode):
    """Collects every tensor as large as the logits that an operation makes."""

    def __init__(self, *, num_numbers: int) -> None:
        super().__init__()
        self.found: dict[int, Tensor] = {}
        self._num_numbers = num_numbers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, Tensor) and each.numel() >= self._num_numbers:
                # Kept, so that no later tensor can get the same place.
                self.found[each.untyped_storage().data_ptr()] = each
        return result


def test_nothing_as_large_as_the_logits_is_ever_made(hidden: Tensor, head: nn.Linear) -> None:
    with _LargeStorages(num_numbers=NUM_ROWS * VOCABULARY) as made:
        values = values_of_rows(hidden, head, torch.arange(NUM_ROWS), {"ce": cross_entropy}, chunk_tokens=8)
        values["ce"].sum().backward()

    assert 0 == len(made.found)


def test_all_logits_at_once_would_be_noticed(hidden: Tensor, head: nn.Linear) -> None:
    with _LargeStorages(num_numbers=NUM_ROWS * VOCABULARY) as made:
        functional.cross_entropy(head(hidden.flatten(0, 1)), targets()).backward()

    assert len(made.found) > 1


def test_a_model_is_its_body_and_its_head(make_model: Callable[..., Any]) -> None:
    model = make_model()
    ids = torch.arange(12).view(2, 6)
    mask = torch.ones_like(ids)

    split = SplitModel(model)

    assert split.is_split
    logits = split.logits(split.hidden(ids).last.flatten(0, 1))
    torch.testing.assert_close(logits.view(2, 6, -1), model(input_ids=ids, attention_mask=mask).logits)


def test_a_model_that_does_more_to_its_logits_is_taken_whole(make_model: Callable[..., Any]) -> None:
    model = make_model()
    forward = model.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = 0.5 * torch.tanh(output.logits / 0.5)
        return output

    model.forward = capped
    ids = torch.arange(12).view(2, 6)
    mask = torch.ones_like(ids)

    split = SplitModel(model)

    assert not split.is_split
    logits = split.logits(split.hidden(ids).last)
    torch.testing.assert_close(logits, model(input_ids=ids, attention_mask=mask).logits)
