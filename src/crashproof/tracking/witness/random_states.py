"""Describe the states of the global random generators."""

from __future__ import annotations

import struct
import sys
from typing import Any

from crashproof.tracking.witness.leaves import digest_of_bytes

__all__ = ["random_states"]

_BLOCK = 624
"""Numbers that a Mersenne twister makes at a time."""
_TORCH_HEAD = struct.Struct("<Qiiq")
"""Before the block in torch's state: the seed, how many numbers are left, whether it was seeded, the next one."""
_PHILOX = struct.Struct("<QQ")
"""The state of a CUDA generator: its seed, and how far it is."""


def random_states() -> dict[str, str]:
    """`BLOCK:POSITION:REST` of each generator in use, by name.

    Within a block of equal digest, a higher position means that so many more numbers were drawn; the rest is what a
    generator of normal numbers keeps for its next call.
    """
    states = {}
    # What a program has not imported, it does not draw from; and no program imports it for this.
    python, numpy, torch = sys.modules.get("random"), sys.modules.get("numpy"), sys.modules.get("torch")
    if python is not None:
        states["random.python"] = _of_python(python)
    if numpy is not None and hasattr(numpy, "random"):
        states["random.numpy"] = _of_numpy(numpy)
    if torch is not None and hasattr(torch, "get_rng_state"):
        states["random.torch"] = _of_torch(torch)
        states |= _of_devices(torch)
    return states


def _of_python(random: Any) -> str:
    _, numbers, gauss = random.getstate()
    return _described(repr(numbers[:-1]).encode(), numbers[-1], repr(gauss).encode())


def _of_numpy(numpy: Any) -> str:
    state = numpy.random.get_state(legacy=False)
    block, rest = state["state"], (state.get("has_gauss"), state.get("gauss"))
    return _described(block["key"].tobytes(), int(block["pos"]), repr(rest).encode())


def _of_torch(torch: Any) -> str:
    content = torch.get_rng_state().numpy().tobytes()
    end = _TORCH_HEAD.size + _BLOCK * 8
    if len(content) < end:
        return _described(content, 0, b"")
    _, num_left, _, position = _TORCH_HEAD.unpack_from(content)
    # A generator that was just seeded has used up its block, as it were.
    drawn = _BLOCK if (num_left, position) == (1, 0) else position
    return _described(content[_TORCH_HEAD.size : end], drawn, content[end:])


def _of_devices(torch: Any) -> dict[str, str]:
    if not torch.cuda.is_initialized():
        return {}
    states = {}
    for place, state in enumerate(torch.cuda.get_rng_state_all()):
        content = state.numpy().tobytes()
        seed, offset = _PHILOX.unpack(content) if len(content) == _PHILOX.size else (0, 0)
        block = content if len(content) != _PHILOX.size else b"%d" % seed
        states[f"random.cuda.{place}"] = _described(block, offset, b"")
    return states


def _described(block: bytes, position: int, rest: bytes) -> str:
    return f"{digest_of_bytes(block)}:{position}:{digest_of_bytes(rest)[:8]}"
