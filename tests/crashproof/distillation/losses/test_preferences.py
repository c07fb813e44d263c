from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from crashproof.distillation.losses.preferences import log_odds, odds_ratio_losses, weighted_likelihood_losses


def given(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def dense_losses(chosen: Tensor, rejected: Tensor) -> Tensor:
    """As the paper writes it, with odds in place of their logarithms."""
    odds = [each.exp() / (1 - each.exp()) for each in (chosen, rejected)]
    return -functional.logsigmoid((odds[0] / odds[1]).log())


def test_the_odds_ratio_is_the_papers() -> None:
    chosen, rejected = given(-0.1, -0.7, -3.0, -12.0), given(-2.0, -0.7, -0.2, -11.0)

    torch.testing.assert_close(odds_ratio_losses(chosen, rejected), dense_losses(chosen, rejected))


def test_gradients_agree_with_finite_differences() -> None:
    quality = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    inputs = given(-0.05, -0.69, -4.0), given(-1.0, -0.70, -0.3)

    assert torch.autograd.gradcheck(odds_ratio_losses, inputs, eps=1e-6, atol=1e-6)
    assert torch.autograd.gradcheck(lambda each: weighted_likelihood_losses(each, quality), inputs[:1])


def test_equal_answers_cost_ln_2_and_the_better_one_is_pulled_up() -> None:
    chosen, rejected = given(-1.0), given(-1.0)

    loss = odds_ratio_losses(chosen, rejected)
    loss.sum().backward()

    assert math.log(2) == pytest.approx(loss.item())
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() < 0 < rejected.grad.item()


@pytest.mark.parametrize("value", [0.0, -1e-12, -1e-30, -700.0, -1e6], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
def test_at_the_ends_odds_and_gradients_are_numbers(value: float, dtype: torch.dtype) -> None:
    logprobs = torch.tensor([value], dtype=dtype, requires_grad=True)

    odds = log_odds(logprobs)
    odds.sum().backward()

    assert odds.isfinite().all()
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()


def test_an_answer_of_no_quality_teaches_nothing() -> None:
    logprobs = given(-2.0, -2.0)

    losses = weighted_likelihood_losses(logprobs, torch.tensor([0.0, 0.5], dtype=torch.float64))
    losses.sum().backward()

    assert [0.0, 1.0] == losses.tolist()
    assert logprobs.grad is not None
    assert [0.0, -0.5] == logprobs.grad.tolist()


def test_no_pair_costs_nothing() -> None:
    assert 0 == odds_ratio_losses(given(), given()).sum().item()
