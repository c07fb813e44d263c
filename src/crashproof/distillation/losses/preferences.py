"""The losses of whole answers.

Each takes the mean log-probability of an answer's tokens, which does not favour short answers, and gives a number an
answer or a pair, in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["log_odds", "odds_ratio_losses", "weighted_likelihood_losses"]

_HALF = -math.log(2)


def odds_ratio_losses(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Minus log sigmoid(log odds(chosen) - log odds(rejected)) of each pair, in nats, (pairs,).

    It is `L_OR` of ORPO (Hong, Lee & Thorne, "ORPO: Monolithic Preference Optimization without Reference Model",
    2024, equations 4 to 7), where the odds are those of the length-normalised probability. ln 2 where an answer is as
    likely as the one beside it.

    Args:
        chosen: (pairs,): log-probability per token of the better answer, 0 at most; gradients flow here.
        rejected: (pairs,): of the worse one; gradients flow here too.
    """
    return -functional.logsigmoid(log_odds(chosen) - log_odds(rejected))


def weighted_likelihood_losses(logprobs: Tensor, quality: Tensor) -> Tensor:
    """-quality · log p of each answer, in nats, (answers,).

    A likelihood weighted by a reward, as in reward-weighted regression (Peters & Schaal, "Reinforcement Learning by
    Reward-Weighted Regression for Operational Space Control", 2007): an answer of quality 0 pulls nowhere, and no
    answer is pushed away.

    Args:
        logprobs: (answers,): log-probability per token of each, 0 at most; gradients flow here.
        quality: (answers,), from 0 to 1.
    """
    return -quality * logprobs


def log_odds(logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) of log-probabilities, of the same shape: log p - log(1 - exp(log p)).

    A probability nearer to 1 than the type can tell has the odds of the nearest one that it can tell, and pulls
    nowhere.
    """
    given = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    # Each branch is exact on one side (Mächler, "Accurately Computing log(1 - exp(-|a|))", 2012), and is kept from
    # the other side, where its gradient is no number.
    near = torch.log(-torch.expm1(given.clamp(min=_HALF)))
    far = torch.log1p(-torch.exp(given.clamp(max=_HALF)))
    return given - torch.where(given > _HALF, near, far)
