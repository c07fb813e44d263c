"""Where to kill a run."""

from __future__ import annotations

from collections.abc import Sequence

from crashproof.records.proof.assignment import Moment, Stop
from crashproof.rules.proof.data_stream import DataStream

__all__ = ["plan_kills", "steps_to_digest"]

_BEST = 0.4
"""Share of the run: the first kill comes about there, so that there is a resume of a resume before its end."""
_FEW_STEPS = 2


def plan_kills(steps: Sequence[int], saves: Sequence[int], data: DataStream, num_kills: int) -> list[Stop]:
    """The kills, in order: in mid-epoch, in a save, soon after a resume, and so on.

    There are none without a save to resume from.

    Args:
        steps: Those of the uninterrupted run.
        saves: The steps of its checkpoints.
        data: What it was trained on.
        num_kills: How many kills are wanted.
    """
    last = steps[-1]
    useful = sorted({each for each in saves if steps[0] <= each < last})
    if not useful:
        return []
    save = _first_save(useful, saves, steps, data)
    kills = [Stop(moment=Moment.MID_EPOCH, step=_step_behind(save, saves, last))]
    while len(kills) < num_kills:
        moment = list(Moment)[len(kills) % len(Moment)]
        following = [each for each in sorted({*saves}) if each > save]
        if moment is Moment.AFTER_A_RESUME or not following:
            num_updates = _FEW_STEPS if save + _FEW_STEPS < last else 1
            kills.append(Stop(moment=Moment.AFTER_A_RESUME, num_updates=num_updates))
        elif moment is Moment.IN_A_SAVE:
            # The save before it is then one of a resumed run, which the next start resumes from.
            kills.append(Stop(moment=moment, step=following[:2][-1]))
            save = following[0] if len(following) > 1 else save
        else:
            save = following[0]
            kills.append(Stop(moment=moment, step=_step_behind(save, saves, last)))
    return kills


def steps_to_digest(steps: Sequence[int], saves: Sequence[int], *, most: int) -> list[int]:
    """The steps whose weights and states are compared if not all can be: those behind each save, and some between."""
    behind = {save + more for save in saves for more in (1, 2)}
    spread = steps[:: max(1, len(steps) // max(1, most))]
    return sorted({*steps[:_FEW_STEPS], *spread, steps[-1], *(behind & {*steps})})


def _first_save(useful: Sequence[int], saves: Sequence[int], steps: Sequence[int], data: DataStream) -> int:
    """The save to resume from first: in the middle of an epoch that is not the first, with two saves behind it."""

    def fitness(save: int) -> tuple[int, bool, bool, float]:
        num_following = min(2, sum(each > save for each in {*saves}))
        is_in_a_later_epoch, is_in_mid_epoch = data.epoch_of(save + 1) > 0, not data.begins_epoch(save + 1)
        share = (save - steps[0] + 1) / (steps[-1] - steps[0] + 1)
        return num_following, is_in_a_later_epoch, is_in_mid_epoch, -abs(share - _BEST)

    return max(useful, key=fitness)


def _step_behind(save: int, saves: Sequence[int], last: int) -> int:
    """A few steps behind a save, before the next one and before the end."""
    next_save = min((each for each in saves if each > save), default=last)
    return max(save, min(save + _FEW_STEPS, next_save - 1, last - 1))
