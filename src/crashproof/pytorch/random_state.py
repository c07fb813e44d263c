"""State of all random generators of a process.

It consists of tensors and plain values, so that it can be loaded with `weights_only=True`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["capture_random_state", "restore_random_state", "seed_everything"]


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture_random_state() -> dict[str, object]:
    """The state of each generator by library or device; devices not in use have none."""
    version, numbers, next_gauss = random.getstate()
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)
    state: dict[str, object] = {
        "python": {"version": version, "numbers": list(numbers), "next_gauss": next_gauss},
        "numpy": {
            "name": str(name),
            "keys": [int(key) for key in keys],
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gaussian": float(cached_gaussian),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Restore every generator to a state of `capture_random_state`.

    Devices that no longer exist are skipped: on other devices, no resume is exact anyway.
    """
    python, numbers = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["numbers"]), python["next_gauss"]))
    np.random.set_state(
        (
            numbers["name"],
            np.array(numbers["keys"], dtype=np.uint32),
            numbers["position"],
            numbers["has_gauss"],
            numbers["cached_gaussian"],
        )
    )
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, device_state in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state, device)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
