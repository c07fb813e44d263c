"""The verdict on the losses of a run.

The losses are looked at in windows of several scales: all of the run, its last half, its last quarter, and so on.
For each, the Mann-Kendall test says whether its blocks rise or fall, and Sen's slope by how much. They are decided
together:

- A longer window's direction holds until a shorter one, down to the last quarter, shows that the slope is less than
  half of that now: then it is a plateau. A shorter window's own direction counts only if it has led to a level that
  the updates before it did not have: otherwise a wave would be a trend.
- A rise is a divergence if it goes through its window, up to now: a step that is over, or a spike that recovers, is
  none. In a short window it must also lead above all that the last three quarters of the run have seen, in a longer
  one above all since the loss first was as low as before the rise: otherwise the bumps of a schedule with restarts
  would be divergences.
- A jump that stays, to a level far above, is a divergence as well.
- Noise counts as unstable if it has grown to several times what it was, also relative to the level, or if spikes
  are frequent and irregular.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from crashproof.medians import median
from crashproof.records.states import LossVerdict
from crashproof.rules.loss.statistics import Slope, quantile, slope_of
from crashproof.rules.loss.windows import Block, LossHistory

__all__ = ["FEWEST_UPDATES", "Judgement", "LossWindow", "judge"]

FEWEST_UPDATES = 8
"""With fewer finite losses, there is no verdict."""

_FEWEST_IN_WINDOW = 64
_SHORTEST_SHARE = 1 / 128
_Z_FALL = 3.3
_Z_SIGN = 2.0
"""Enough to believe that a longer window's direction goes on."""
_Z_RISE = 4.5
"""A step in an otherwise level window of 32 blocks reaches 4.2: only a rise that goes on for a third of it, more."""
_Z_INTERVAL = 2.576
"""99 %."""
_SHORTEST_FOR_PLATEAU = 1 / 4
_SHORT = 1 / 8
_NEW_LEVEL = 0.1
"""Of the range of the updates before: a level beyond it by that much is a new one."""
_HIGHER = 0.5
"""Likewise for a divergence."""
_LEAST_FALL = 0.001
"""Relative to the level; less is a plateau, unless it is a fair share of what the run has fallen at all."""
_LEAST_RISE = 0.02
_SHARE_OF_RANGE = 0.05
_RISE_IN_NOISE = 5.0
_ROUNDING = 1e-9
_WARM_UP = 0.1
"""Of all steps of the run, and at most as many updates: so long the loss may rise while the learning rate does."""
_WARM_UP_UPDATES = 2000
_JUMP = 0.5
"""Relative to the level, and at least the range before it."""
_FEWEST_BLOCKS_FOR_JUMP = 24
_COMES_BACK = 0.1
"""Of a jump: one that has lost so much since comes back."""
_LEAST_FOR_NOISE = 16
_GROWTH = 4.0
_SPIKES = 8.0
_SPIKE_SHARE = 0.05
_REGULAR = 0.6


class LossWindow(NamedTuple):
    """What one window shows."""

    num_updates: int
    blocks: list[Block]
    slope: Slope
    """Of the blocks' levels, per update."""

    @property
    def level(self) -> float:
        """That of its newest quarter."""
        return median(block.level for block in self.blocks[-max(1, len(self.blocks) // 4) :])

    @property
    def pace(self) -> float:
        """The change per update between its first eighth and its newest quarter, or the slope if that is steeper."""
        first = median(block.level for block in self.blocks[: max(1, len(self.blocks) // 8)])
        mean = (self.level - first) / (0.8 * self.num_updates)
        return max(mean, self.slope.estimate, key=abs)

    @property
    def change(self) -> float:
        """By how much the loss has changed over the window."""
        return self.slope.estimate * self.num_updates


class Judgement(NamedTuple):
    """The verdict, and the window that it rests on."""

    verdict: LossVerdict
    window: LossWindow | None = None

    @property
    def confidence(self) -> float | None:
        """How certain it is that the loss moves as the verdict says: 1 less the level of the Mann-Kendall test.

        None where the verdict is not about a direction.
        """
        if self.window is None or self.verdict not in (LossVerdict.IMPROVING, LossVerdict.DIVERGING):
            return None
        return math.erf(abs(self.window.slope.z) / math.sqrt(2.0))


def judge(history: LossHistory, *, progress: float | None = None) -> Judgement:
    """Judge all losses of a run.

    Args:
        history: Its losses, of which some are finite.
        progress: The share of its steps that is done; None if unknown.
    """
    windows = list(_windows(history))
    if not windows or sum(block.num_updates for block in windows[0].blocks) < FEWEST_UPDATES:
        return Judgement(LossVerdict.UNKNOWN)
    whole = [block.level for block in windows[0].blocks]
    extent = max(whole) - min(whole)
    for longer, window in zip([windows[0], *windows], windows, strict=False):
        if _has_jumped(history, window) or (
            _rises(history, window, progress) and _agrees(longer, window, windows[0])
        ):
            return Judgement(LossVerdict.DIVERGING, window)
    if _is_unstable(history):
        return Judgement(LossVerdict.UNSTABLE, windows[0])
    window, falls = _direction(history, windows)
    if falls and _is_worth_telling(-window.change, window, extent):
        return Judgement(LossVerdict.IMPROVING, window)
    return Judgement(LossVerdict.PLATEAU, window)


def _windows(history: LossHistory) -> Iterator[LossWindow]:
    """From the longest to the shortest."""
    total = size = history.num_updates
    while size == total or size >= max(_FEWEST_IN_WINDOW, _SHORTEST_SHARE * total):
        blocks = history.blocks(size)
        if len(blocks) < 2:
            return
        yield LossWindow(size, blocks, slope_of(list(_points(blocks)), z_interval=_Z_INTERVAL))
        size //= 2


def _points(blocks: Sequence[Block]) -> Iterator[tuple[float, float]]:
    place = 0
    for block in blocks:
        yield place + block.num_updates / 2, block.level
        place += block.num_updates


def _direction(history: LossHistory, windows: Sequence[LossWindow]) -> tuple[LossWindow, bool]:
    """The window that says how the loss moves now, and whether the loss falls."""
    total = windows[0].num_updates
    said, sign = windows[0], _sign(windows[0].slope)
    for window in windows[1:]:
        own = _sign(window.slope)
        if own and own != sign and not _is_new_level(history, window, own):
            own = 0
        if own or (sign and window.slope.z * sign > _Z_SIGN):
            said, sign = window, own or sign
        elif sign and window.num_updates >= _SHORTEST_FOR_PLATEAU * total and _is_flatter(window, said):
            said, sign = window, 0
    return said, sign < 0


def _sign(slope: Slope) -> int:
    return (slope.z >= _Z_FALL) - (slope.z <= -_Z_FALL)


def _is_flatter(now: LossWindow, before: LossWindow) -> bool:
    """Whether it is certain that the slope is less than half of what it was, and nothing speaks for any."""
    half = before.pace / 2
    if half > 0:
        return now.slope.high < half and now.slope.z < _Z_SIGN
    return now.slope.low > half and now.slope.z > -_Z_SIGN


def _is_new_level(history: LossHistory, window: LossWindow, sign: int) -> bool:
    """Whether a window has led beyond all levels of the last half of the run, and of the three windows before it."""
    before = _blocks_before(history, window, max(4 * window.num_updates, history.num_updates // 2))
    if not before:
        return True
    low, high = min(block.low for block in before), max(block.high for block in before)
    margin = _NEW_LEVEL * (high - low)
    return window.level > high + margin if sign > 0 else window.level < low - margin


def _blocks_before(history: LossHistory, window: LossWindow, newest: int) -> list[Block]:
    """The blocks before a window, none of them finer than its newest level."""
    return history.blocks(newest, skip=window.num_updates, least_size=max(1, window.num_updates // 8))


def _agrees(longer: LossWindow, window: LossWindow, whole: LossWindow) -> bool:
    """Whether a rise in a short window is one in a window of twice its length as well."""
    return window.num_updates > _SHORT * whole.num_updates or longer.slope.z >= _Z_RISE


def _rises(history: LossHistory, window: LossWindow, progress: float | None) -> bool:
    if window.slope.z < _Z_RISE or window.slope.low <= 0:
        return False
    levels = [block.level for block in window.blocks]
    quarters = [levels[len(levels) * part // 4 : len(levels) * (part + 1) // 4] for part in range(4)]
    if median(quarters[3]) <= max(median(each) for each in quarters[:3] if each):
        return False
    rise = window.level - min(levels)
    scale = abs(window.level) + _tiny(levels)
    if rise < _LEAST_RISE * scale and rise < _RISE_IN_NOISE * _noise(history, window.num_updates):
        return False
    if _may_warm_up(history, progress) and rise < abs(min(levels)):
        return False
    return window.level > _highest_before(history, window, rise)


def _may_warm_up(history: LossHistory, progress: float | None) -> bool:
    return progress is not None and progress < _WARM_UP and history.num_updates < _WARM_UP_UPDATES


def _highest_before(history: LossHistory, window: LossWindow, rise: float) -> float:
    """The highest level that a rise must pass: what was higher long before does not count."""
    total = history.num_updates
    if window.num_updates >= total:
        return -math.inf
    if window.num_updates <= _SHORT * total:
        before = _blocks_before(history, window, total * 3 // 4)
        highs = [block.high for block in before]
    else:
        before = _blocks_before(history, window, total)
        low = min((block.low for block in before), default=0.0) + rise / 4
        while before and before[0].low > low:
            before.pop(0)
        # Rare spikes are no levels.
        highs = sorted(block.high for block in before)[: math.ceil(0.9 * len(before))]
    if not highs:
        return -math.inf
    return max(highs) + _HIGHER * (max(highs) - min(block.low for block in before))


def _has_jumped(history: LossHistory, window: LossWindow) -> bool:
    """Whether the loss has jumped to a level far above, and does not come back."""
    count = len(window.blocks)
    before = [block.level for block in history.blocks(history.num_updates * 3 // 4, skip=window.num_updates * 2 // 3)]
    if count < _FEWEST_BLOCKS_FOR_JUMP or window.num_updates == history.num_updates or not before:
        return False
    after = window.blocks[-count // 3 :]
    levels = [block.level for block in after]
    jump = min(levels) - max(before)
    noise = _noise(history, window.num_updates)
    if jump <= 0 or jump < max(_JUMP * abs(median(before)), max(before) - min(before), _SPIKES * noise):
        return False
    fall = -slope_of(list(_points(after))).estimate * sum(block.num_updates for block in after)
    return fall < _COMES_BACK * jump and max(levels) - min(levels) < jump / 2


def _noise(history: LossHistory, newest: int) -> float:
    """The standard deviation of the noise of the newest updates; blocks of fewer than 16 have none to measure."""
    return median(block.noise for block in history.blocks(newest, least_size=_LEAST_FOR_NOISE))


def _tiny(levels: Sequence[float]) -> float:
    return _ROUNDING * max(map(abs, levels))


def _is_worth_telling(fall: float, window: LossWindow, extent: float) -> bool:
    levels = [block.level for block in window.blocks]
    if fall <= _tiny(levels):
        return False
    return fall >= _LEAST_FALL * abs(window.level) or fall >= _SHARE_OF_RANGE * extent


def _is_unstable(history: LossHistory) -> bool:
    return _noise_has_grown(history) or _has_irregular_spikes(history.recent[-512:])


def _noise_has_grown(history: LossHistory) -> bool:
    """Whether the noise of the last eighth is far above that of the calmer part of the half before it."""
    total = history.num_updates
    newest = max(total // 8, min(32, total // 2))
    after = history.blocks(newest, least_size=_LEAST_FOR_NOISE)
    before = history.blocks(newest + total // 2, skip=newest, least_size=_LEAST_FOR_NOISE)
    if not after or len(before) < 2:
        return False
    tail_before = quantile([each.tail for each in before], 0.25)
    tail_after = median(each.tail for each in after)
    level_before, level_after = median(each.level for each in before), median(each.level for each in after)
    if tail_after <= _GROWTH * tail_before or tail_before <= _tiny([level_before, level_after]):
        return False
    # A level near zero has no size to compare the noise with.
    if min(abs(level_before), abs(level_after)) <= tail_after or level_before * level_after < 0:
        return True
    return tail_after / abs(level_after) > _GROWTH * tail_before / abs(level_before)


def _has_irregular_spikes(losses: Sequence[float]) -> bool:
    """Whether more than one loss in twenty is a spike, at places that no period explains."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if len(finite) < 64:
        return False
    middle = median(finite)
    noise = median(abs(loss - middle) for loss in finite) * 1.4826
    places = [
        place
        for place, (before, now, after) in enumerate(zip(finite, finite[1:], finite[2:], strict=False))
        if now - max(before, after) > _SPIKES * noise
    ]
    if noise <= _tiny(finite) or not _SPIKE_SHARE * len(finite) < len(places):
        return False
    gaps = [later - earlier for earlier, later in pairwise(places)]
    commonest = sorted((gaps.count(gap) for gap in set(gaps)), reverse=True)
    return sum(commonest[:2]) < _REGULAR * len(gaps)
