"""Preference losses of complete answers.

Each takes the mean log-probability of an answer's tokens, which does not favour short answers, and returns one value
per answer or pair, in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from crashproof.distillation.losses.divergences import log1mexp

__all__ = ["log_odds", "odds_ratio_losses", "weighted_likelihood_losses"]


def odds_ratio_losses(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Minus log sigmoid(log odds(chosen) - log odds(rejected)) of each pair, in nats, (pairs,).

    It is `L_OR` of ORPO (Hong, Lee & Thorne, "ORPO: Monolithic Preference Optimization without Reference Model",
    2024, equations 4 to 7), where the odds are those of the length-normalised probability. ln 2 if both answers are
    equally likely.

    Args:
        chosen: (pairs,): log-probability per token of the better answer, 0 at most; gradients flow here.
        rejected: (pairs,): the same of the worse answer; gradients flow here too.
    """
    return -functional.logsigmoid(log_odds(chosen) - log_odds(rejected))


def weighted_likelihood_losses(logprobs: Tensor, quality: Tensor) -> Tensor:
    """-quality · log p of each answer, in nats, (answers,).

    A likelihood weighted by a reward, as in reward-weighted regression (Peters & Schaal, "Reinforcement Learning by
    Reward-Weighted Regression for Operational Space Control", 2007): an answer of quality 0 has no gradient, and no
    answer becomes less likely.

    Args:
        logprobs: (answers,): log-probability per token of each, 0 at most; gradients flow here.
        quality: (answers,), from 0 to 1.
    """
    return -quality * logprobs


def log_odds(logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) of log-probabilities, of the same shape: log p - log(1 - exp(log p)).

    A probability that rounds to 1 has the odds of the largest smaller one of its type, and no gradient.
    """
    given = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    return given - log1mexp(given)
