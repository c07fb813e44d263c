"""The state that a resumed run needs.

It has two forms: one file from one process, and a folder with a shard from each of several. Any number of processes
can read either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from crashproof.errors import CheckpointMismatch
from crashproof.pytorch.checkpoint_file import load_checkpoint, require_fit
from crashproof.pytorch.random_state import capture_random_state, restore_random_state, seed_everything
from crashproof.pytorch.ranks import Ranks
from crashproof.pytorch.sharded_checkpoint import load_rank_state, load_shared_state, load_tensors, tensor_shapes

__all__ = ["Counters", "TrainingState", "require_checkpoint", "size_of"]

_FORMAT = 2
_MODULE, _OPTIMIZER = "module.", "optimizer."


@dataclass(slots=True, kw_only=True)
class Counters:
    """The progress of the training."""

    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Consumed by all processes; the position in the data order."""
    tokens: int = 0
    """Predicted."""
    schedule_steps: int = 0
    """The horizon of the learning rate, fixed when the run began."""


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """Module, optimizer, scaler and counters, as one checkpoint."""

    module: nn.Module
    """The recipe itself, without the wrapper of a strategy; its frozen weights are not saved."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ranks: Ranks
    seed: int
    counters: Counters = field(default_factory=Counters)
    healthy_losses: list[tuple[int, float]] | None = None
    """The newest steps with a healthy loss, and these; None where nobody judges steps."""

    def tensors(self) -> dict[str, Tensor]:
        """Weights, buffers and the optimizer's moments by name; of a sharded model the parts of this process."""
        tensors = {f"{_MODULE}{name}": tensor for name, tensor in self._saved_weights().items()}
        for name, parameter in self._trained().items():
            for key, value in self._moments_of(parameter).items():
                tensors[f"{_OPTIMIZER}{name}.{key}"] = value
        return tensors

    def shared_values(self) -> dict[str, Any]:
        """The values, apart from tensors, that all processes share."""
        losses = {} if self.healthy_losses is None else {"healthy_losses": self.healthy_losses}
        return {
            "format": _FORMAT,
            "scaler": self.scaler.state_dict(),
            "counters": {each.name: getattr(self.counters, each.name) for each in fields(Counters)},
            "num_ranks": self.ranks.num_ranks,
            **losses,
        }

    def own_values(self) -> dict[str, Any]:
        """The values of this process alone: its current random states, between two steps."""
        return {"random": capture_random_state()}

    def restore(self, path: Path) -> None:
        """Restore a checkpoint, the random states last. Every process calls it.

        Raises:
            CheckpointDamaged: it cannot be read.
            CheckpointMismatch: it belongs to another model, or to another kind of program; nothing was changed.
        """
        if path.is_dir():
            shared, own = require_checkpoint(path), load_rank_state(path, self.ranks.rank)
            self._require_fit(tensor_shapes(path), path)
            tensors: dict[str, Any] = dict(self.tensors())
            load_tensors(path, tensors, self.ranks)
        else:
            content = require_checkpoint(path, is_mapped=True)
            self._require_fit({name: each.shape for name, each in content["tensors"].items()}, path)
            shared, own = content, content["own"] if self.ranks.is_main else None
            for name, tensor in self.tensors().items():
                _copy_into(content["tensors"][name], tensor)
        if shared["scaler"]:
            self.scaler.load_state_dict(shared["scaler"])
        self.counters = Counters(**shared["counters"])
        self.healthy_losses = shared.get("healthy_losses")
        self._restore_random(own, is_same_number=shared["num_ranks"] == self.ranks.num_ranks)

    def require_fit(self, path: Path) -> None:
        """Make sure that a checkpoint can be read and belongs to this model; changes nothing.

        Raises:
            CheckpointDamaged, CheckpointMismatch: it cannot, or does not.
        """
        content = require_checkpoint(path)
        found = (
            tensor_shapes(path) if path.is_dir() else {name: each.shape for name, each in content["tensors"].items()}
        )
        self._require_fit(found, path)

    def _saved_weights(self) -> dict[str, Tensor]:
        """What training changes; frozen weights (under adapters) stay in the folder that they came from."""
        kept = self.module.state_dict().keys()
        buffers = {name: each for name, each in self.module.named_buffers() if name in kept}
        return {name: each.detach() for name, each in (self._trained() | buffers).items()}

    def _trained(self) -> dict[str, Tensor]:
        return {name: each for name, each in self.module.named_parameters() if each.requires_grad}

    def _moments_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """AdamW's state of one parameter; made of zeros where no step was taken yet, as the first step would."""
        state = self.optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return {str(key): value for key, value in state.items()}

    def _require_fit(self, found: Mapping[str, torch.Size], path: Path) -> None:
        expected = {name: each.shape for name, each in self.tensors().items()}
        require_fit(path, _unprefixed(found), _unprefixed(expected))

    def _restore_random(self, own: Mapping[str, Any] | None, *, is_same_number: bool) -> None:
        if own is not None and (is_same_number or self.ranks.is_main):
            restore_random_state(own["random"])
            return
        # The number of processes has changed: start a new sequence, the same at each start.
        words = f"{self.seed} {self.counters.step} {self.ranks.rank} {self.ranks.num_ranks}"
        seed_everything(int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big"))


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """The approximate size of a checkpoint of these tensors, over all processes."""
    return sum(each.numel() * each.element_size() for each in tensors.values())


def require_checkpoint(path: Path, *, is_mapped: bool = False) -> Mapping[str, Any]:
    """Make sure that a path is an intact checkpoint of a trainer, in this format; return its content.

    `is_mapped` is that of `load_checkpoint`.

    Raises:
        CheckpointDamaged: it is missing, torn or altered.
        CheckpointMismatch: it belongs to another kind of program.
    """
    content = load_shared_state(path) if path.is_dir() else load_checkpoint(path, is_mapped=is_mapped)
    if content.get("format") != _FORMAT:
        raise CheckpointMismatch(path, reason=f"its format is {content.get('format')!r}, not {_FORMAT}")
    return content


def _unprefixed(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    return {name.removeprefix(_MODULE): shape for name, shape in shapes.items()}


def _copy_into(source: Tensor, target: Tensor) -> None:
    """Copy a tensor, or this process's part of it."""
    with torch.no_grad():
        if isinstance(target, DTensor):
            # Each process has read the whole tensor: nothing is sent.
            part = distribute_tensor(
                source.to(target.device), target.device_mesh, target.placements, src_data_rank=None
            )
            target.copy_(part)
        else:
            target.copy_(source)
