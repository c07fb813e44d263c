"""Everything a resumed run needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from holdfast.errors import CheckpointMismatch
from holdfast.pytorch.checkpoint_file import require_fit
from holdfast.pytorch.random_state import capture_random_state, restore_random_state

__all__ = ["Counters", "TrainingState"]

_FORMAT = 1


@dataclass(slots=True, kw_only=True)
class Counters:
    """How far the training has come."""

    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Consumed; the position in the data order."""
    tokens: int = 0
    """Predicted."""
    schedule_steps: int = 0
    """The horizon of the learning rate, fixed when the run began."""
    best_loss: float = math.inf


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """Modules, optimizer, scaler and counters, as one checkpoint."""

    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    counters: Counters = field(default_factory=Counters)

    def capture(self) -> dict[str, Any]:
        """The content of a checkpoint file; the random states are those of this moment, between two steps."""
        return {
            "format": _FORMAT,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "counters": {name: getattr(self.counters, name) for name in Counters.__slots__},
            "random": capture_random_state(),
        }

    def restore(self, content: dict[str, Any], path: Path) -> None:
        """Go on where a checkpoint was taken; the random states are restored last.

        Raises:
            CheckpointMismatch: it belongs to another model, or to another kind of program.
        """
        self.require_fit(content, path)
        for name, module in self.modules.items():
            module.load_state_dict(content["modules"][name])
        self.optimizer.load_state_dict(content["optimizer"])
        if content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        self.counters = Counters(**content["counters"])
        restore_random_state(content["random"])

    def require_fit(self, content: dict[str, Any], path: Path) -> None:
        """Make sure, before anything is changed, that a checkpoint belongs here."""
        if content.get("format") != _FORMAT:
            raise CheckpointMismatch(path, reason=f"its format is {content.get('format')!r}, not {_FORMAT}")
        if content["modules"].keys() != self.modules.keys():
            names = ", ".join(sorted(content["modules"]))
            raise CheckpointMismatch(path, reason=f"it holds {names}; {', '.join(sorted(self.modules))} are needed")
        for name, module in self.modules.items():
            require_fit(path, content["modules"][name], module.state_dict())
