"""Where and how precisely to compute."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from holdfast.errors import ConfigError

__all__ = ["PRECISIONS", "autocast_for", "chosen_device", "gradient_scaler_for"]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def chosen_device(wish: str = "auto") -> torch.device:
    """CUDA, else MPS, else the CPU; or the one that was asked for.

    Raises:
        ConfigError: it is not there.
    """
    if wish == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    is_there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not is_there.get(wish.partition(":")[0], False):
        raise ConfigError(
            f"train.device is {wish!r}, which this machine does not have.", hint="Use auto, cpu, cuda or mps."
        )
    return torch.device(wish)


def autocast_for(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context of a forward pass: bf16 where a CUDA device has it, fp16 on an older one, else fp32."""
    dtype = _dtype_for(device, precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def gradient_scaler_for(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """A scaler that does nothing unless the forward pass is in fp16."""
    return torch.amp.GradScaler(device.type, enabled=_dtype_for(device, precision) is torch.float16)


def _dtype_for(device: torch.device, precision: str) -> torch.dtype | None:
    if precision == "bf16":
        return torch.bfloat16
    if precision == "fp16":
        return torch.float16
    if precision == "fp32" or device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
