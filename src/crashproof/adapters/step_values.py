"""Read the loss and the learning rate of a step.

Both stay on their device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crashproof.errors import InvalidMetric
from crashproof.notices import Notices
from crashproof.scalars import as_float

__all__ = ["learning_rate_of", "scalar_loss"]


def scalar_loss(loss: object, notices: Notices) -> Tensor | None:
    """The loss of a batch as one number, of several their mean; None if it is none."""
    if not isinstance(loss, Tensor):
        try:
            return None if loss is None else torch.tensor(as_float(loss, "loss"))
        except InvalidMetric as error:
            notices.warn("loss", "%s The batch has no loss.", error)
            return None
    loss = loss.detach()
    if loss.numel() == 1:
        return loss.reshape(())
    notices.warn("mean", "A batch has %d losses: their mean is recorded.", loss.numel())
    return loss.float().mean() if loss.numel() else None


def learning_rate_of(optimizer: Any, notices: Notices) -> Tensor | float:
    """The learning rate that a step uses; 0 if its optimizer has none."""
    try:
        rate = optimizer.param_groups[0]["lr"]
        return rate.detach().clone() if isinstance(rate, Tensor) else as_float(rate, "lr")
    except (AttributeError, InvalidMetric, LookupError, TypeError):
        notices.warn("rate", "%s has no learning rate: recording 0.", type(optimizer).__name__)
        return 0.0
