"""How far a random generator of a resumed run is from where it should be."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from crashproof.rules.proof.observations import Difference, StepSeen

__all__ = ["Draws", "draws_of", "generators_in_use"]

_BLOCK = 624
"""Numbers that a Mersenne twister makes at a time."""

_NUM_COLONS = 2
"""In a state as the tracker describes it, `BLOCK:POSITION:REST`; a generator that a loop shows is a digest."""


class Draws(StrEnum):
    """What has become of a generator."""

    BEGAN_AGAIN = "began again"
    AHEAD = "ahead"
    BEHIND = "behind"
    UNRELATED = "unrelated"


def generators_in_use(control: Mapping[int, StepSeen], names: frozenset[str]) -> frozenset[str]:
    """Those generators that the training draws from: their states change from step to step."""
    return frozenset(name for name in names if len({each.values.get(name) for each in control.values()}) > 1)


def draws_of(name: str, difference: Difference, control: Mapping[int, StepSeen]) -> tuple[Draws, int]:
    """What has become of a generator at a differing step, and by how many numbers if that is known, else 0."""
    states = {step: each.values[name] for step, each in sorted(control.items()) if name in each.values}
    found = difference.found.values[name]
    if found == states.get(min(control) + difference.offset):
        return Draws.BEGAN_AGAIN, 0
    if found.count(":") != _NUM_COLONS:
        return Draws.UNRELATED, 0
    block, position = _parsed(found)
    blocks = list(dict.fromkeys(_parsed(each)[0] for each in states.values()))
    if block not in blocks:
        return Draws.UNRELATED, 0
    expected_block, expected_position = _parsed(states[difference.step])
    num_blocks = blocks.index(block) - blocks.index(expected_block)
    num = num_blocks * _BLOCK + position - expected_position
    # Blocks that no step has ended in are not known.
    return Draws.AHEAD if num >= 0 else Draws.BEHIND, abs(num) if abs(num_blocks) <= 1 else 0


def _parsed(state: str) -> tuple[str, int]:
    block, position, _ = state.split(":")
    return block, int(position)
