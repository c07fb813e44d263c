"""Compare recomputed steps with their journal."""

from __future__ import annotations

import logging
import sys
from collections import deque

from crashproof.reading.run_state import read_losses
from crashproof.records.events import ReplayDiffered
from crashproof.records.metrics import MetricsSnapshot
from crashproof.rules.bad_steps.reaction import first_step_without_data
from crashproof.rules.history import losses_agree
from crashproof.tracking.run_writer import RunWriter

__all__ = ["ReplayCheck"]

log = logging.getLogger("crashproof")

_HUGE = sys.float_info.max
_MOST_EXPECTED_LINES = 200_000


class ReplayCheck:
    """Says once, in the log and in the journal, that an attempt does not repeat the losses of the one before."""

    def __init__(self, writer: RunWriter) -> None:
        self._writer = writer
        self._journal_end_at_opening = writer.run.metrics.journal.num_bytes
        self._expected_losses: deque[tuple[int, float]] | None = None
        """What earlier attempts journalled for the next steps; None until the first update is known."""
        self.is_due = True
        """Whether the next update has to be compared."""

    def check(self, line: MetricsSnapshot) -> None:
        """Compare a recomputed step with what earlier attempts journalled."""
        self._compare(line)
        self.is_due = bool(self._expected_losses)

    def stop(self) -> None:
        """Compare no further step."""
        self._expected_losses, self.is_due = deque(), False

    def _compare(self, line: MetricsSnapshot) -> None:
        if self._expected_losses is None:
            self._expected_losses = self._losses_to_repeat(line.step)
        expected = self._expected_losses
        while expected and expected[0][0] < line.step:
            expected.popleft()
        if not expected or expected[0][0] > line.step:
            return
        _, before = expected.popleft()
        if losses_agree(before, line.loss):
            return
        expected.clear()
        log.warning(
            "Step %s was recomputed with a different loss (%r before, %r now): this attempt does not repeat the "
            "earlier one bit for bit. Code, data, libraries or hardware may have changed.",
            f"{line.step:,}",
            before,
            line.loss,
        )
        self._writer.keep(
            ReplayDiffered(
                **self._writer.stamp(), step=line.step, loss_before=_or_none(before), loss_now=_or_none(line.loss)
            )
        )

    def _losses_to_repeat(self, first_step: int) -> deque[tuple[int, float]]:
        """The losses of earlier attempts from the first step of this one on; empty if they ended before."""
        if first_step > self._writer.session.steps_completed:
            return deque()
        losses = read_losses(
            self._writer.run.folder,
            first_step=first_step,
            end=self._journal_end_at_opening,
            max_lines=_MOST_EXPECTED_LINES,
        )
        changed = first_step_without_data(self._writer.session)
        return deque(each for each in losses if changed is None or each[0] < changed)


def _or_none(loss: float) -> float | None:
    return loss if -_HUGE <= loss <= _HUGE else None
