"""Which checkpoint is at fault when resumes from it die."""

from __future__ import annotations

from collections.abc import Sequence

from crashproof.records.supervision import EndCause
from crashproof.rules.supervision.restarts import Life

__all__ = ["is_suspect"]

_RESUMES = 2
"""One may die of something else."""
_MOST_IN_A_ROW = 2
"""If resumes from that many die, it is not the checkpoints."""
_OWN_FAULT = frozenset({EndCause.EXCEPTION, EndCause.SIGNAL, EndCause.OUT_OF_MEMORY, EndCause.HANG})


def is_suspect(lives: Sequence[Life], *, num_suspects: int) -> bool:
    """Whether the newest lives resumed from one checkpoint and died before they had completed a step.

    `num_suspects` are those that were found since there was progress.
    """
    newest = lives[-_RESUMES:]
    if len(newest) < _RESUMES or num_suspects >= _MOST_IN_A_ROW or newest[-1].resumed_from is None:
        return False
    return all(
        each.resumed_from == newest[-1].resumed_from and not each.made_step and each.cause in _OWN_FAULT
        for each in newest
    )
