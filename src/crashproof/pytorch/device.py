"""Compute device and precision."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from crashproof.errors import ConfigError

__all__ = ["ComputeDevice", "DeviceName", "PrecisionName", "choose_device", "compute_deterministically"]

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]

_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeDevice:
    """A device and the type of its matrix products."""

    device: torch.device
    autocast_dtype: torch.dtype | None
    """None: the type of the weights."""

    def autocast(self) -> AbstractContextManager[object]:
        """The autocast context for the forward pass; not for the backward pass."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """A gradient scaler, enabled only for float16, whose small gradients would underflow."""
        return torch.amp.GradScaler(self.device.type, enabled=self.autocast_dtype is torch.float16)

    def __str__(self) -> str:
        precision = "float32" if self.autocast_dtype is None else str(self.autocast_dtype).removeprefix("torch.")
        return f"{self.device.type} in {precision}"


def choose_device(name: DeviceName = "auto", precision: PrecisionName = "auto") -> ComputeDevice:
    """The requested device, or CUDA if available, else MPS, else the CPU.

    `auto` precision is bfloat16 on CUDA devices that support it, float16 on others, and float32 elsewhere.

    Raises:
        ConfigError: The requested device is not available.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.append("mps")
    if torch.cuda.is_available():
        available.append("cuda")
    chosen = available[-1] if name == "auto" else name
    if chosen not in available:
        raise ConfigError(
            f"train.device: {chosen} is not available here.", hint=f"Use one of: auto, {', '.join(available)}."
        )
    return ComputeDevice(device=torch.device(chosen), autocast_dtype=_autocast_dtype(chosen, precision))


def compute_deterministically() -> None:
    """Make PyTorch use deterministic algorithms; operations without one warn."""
    # cuBLAS reads this when it starts; without it, some of its sums depend on the order of streams.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling new memory only hides reads before writes, which do not occur here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _autocast_dtype(device: str, precision: PrecisionName) -> torch.dtype | None:
    if precision == "auto":
        if device != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return _HALVES.get(precision)
