"""The learning rate of each step."""

from __future__ import annotations

import math

__all__ = ["learning_rate_at"]


def learning_rate_at(
    step: int, *, peak: float, warmup_steps: int, schedule_steps: int, final_fraction: float
) -> float:
    """Linear warm-up, then half a cosine down to `final_fraction` of the peak at `schedule_steps`.

    A pure function of the step (counted from 1), so a resume has nothing to restore and cannot rescale it; beyond
    the schedule it stays at its end (Loshchilov & Hutter, "SGDR", 2017, without restarts).
    """
    if step <= warmup_steps:
        return peak * step / max(1, warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(1, schedule_steps - warmup_steps))
    return peak * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress)))
