"""Turn updates into lines of the journal."""

from __future__ import annotations

import logging
import sys
from collections import deque

import msgspec

from crashproof.clock import Clock
from crashproof.odd_values import OddValues
from crashproof.reading.run_state import read_losses
from crashproof.records.codec import nonfinite_names
from crashproof.records.events import Paused, ReplayDiffered
from crashproof.records.metrics import MetricsSnapshot, Numbers, Update, snapshot_of
from crashproof.rules.history import losses_agree
from crashproof.rules.pace import ThroughputWindow
from crashproof.rules.stopwatch import StandstillDetector, TrainingStopwatch
from crashproof.tracking.heartbeat import current_tick
from crashproof.tracking.pending_updates import Moment, PendingUpdates, as_reported, floats_of, numbers_on_host
from crashproof.tracking.run_writer import RunWriter

__all__ = ["MetricsRecorder"]

log = logging.getLogger("crashproof")

_HUGE = sys.float_info.max
_MOST_EXPECTED_LINES = 200_000


class MetricsRecorder:
    """Times each update, writes it once its numbers have arrived, and compares recomputed steps.

    Not thread-safe: its owner locks.
    """

    def __init__(
        self,
        writer: RunWriter,
        *,
        clock: Clock,
        throughput_window_seconds: float,
        standstills: StandstillDetector,
        odd_values: OddValues | None = None,
    ) -> None:
        self._writer = writer
        self._odd_values = odd_values or OddValues()
        self._standstills = standstills
        self._clock = clock
        newest = writer.newest_update
        self._stopwatch = TrainingStopwatch(hours_before=writer.session.wall_clock_hours, started_at=clock.steady())
        self._throughput = ThroughputWindow(
            started_at=clock.steady(),
            before=(newest.throughput_samples_per_sec, newest.throughput_tokens_per_sec) if newest else (None, None),
            window_seconds=throughput_window_seconds,
        )
        self._pending = PendingUpdates(self._write)
        self._journal_end_at_opening = writer.run.metrics.journal.num_bytes
        self._expected_losses: deque[tuple[int, float]] | None = None
        """What earlier attempts journalled for the next steps; None until the first update is known."""
        self._order = _StepOrder()

    @property
    def num_pending(self) -> int:
        """Updates whose numbers are still on a device."""
        return len(self._pending)

    def hours_trained(self) -> float:
        """Training time up to now, without pauses and downtime."""
        return self._stopwatch.hours(self._clock.steady())

    def record(self, update: Update) -> None:
        """Write one update, or queue it until its numbers arrive; see `ProgressTracker.update_metrics`."""
        moment = Moment(int(self._clock.now() * 1e3) / 1e3, self._clock.steady())
        if moment.steady_seconds > self._standstills.late_at:
            self.leave_out_standstill(moment.steady_seconds)
        numbers = floats_of(update)
        if numbers is None:
            update = as_reported(update, self._odd_values)
            numbers = numbers_on_host(update)
        if numbers is not None and not self._pending:
            self._write(moment, update, numbers)
            return
        self._pending.add(moment, update)
        self._pending.write_ready()

    def write_ready(self) -> None:
        """Write the updates whose numbers have arrived."""
        self._pending.write_ready()

    def write_all(self) -> None:
        """Wait for all numbers, and write."""
        self._pending.write_all()

    def expect_resume(self) -> None:
        """Expect the next update to be of an earlier step: a checkpoint is about to be loaded."""
        self._pending.write_all()
        self._order.expect_resume()

    def record_pause(self, seconds: float) -> None:
        """Record a pause that ends now, and leave it out of the training time."""
        # Updates from before the pause are timed before it; the device has had the pause to finish.
        self._pending.write_all()
        left_out = self._stopwatch.leave_out(seconds, self._clock.steady())
        self._throughput.shift(left_out)
        self._writer.keep(Paused(**self._writer.stamp(), seconds=seconds))

    def leave_out_standstill(self, moment: float | None = None) -> None:
        """Record that the process stood still, and leave that out of the training time; nothing if it did not.

        Args:
            moment: When the first update after it was reported, by the steady clock; by default, now.
        """
        by_steady_clock, seconds = self._standstills.take(current_tick())
        if not seconds:
            return
        log.warning(
            "The process stood still for %.0f s: it was stopped (SIGSTOP), frozen, or the machine was suspended. "
            "That time counts as paused.",
            seconds,
        )
        self._pending.write_all()
        left_out = self._stopwatch.leave_out(by_steady_clock, self._clock.steady() if moment is None else moment)
        self._throughput.shift(left_out)
        self._writer.keep(Paused(**self._writer.stamp(), seconds=seconds, cause="standstill"))

    def _write(self, moment: Moment, update: Update, numbers: Numbers) -> None:
        samples, tokens = self._order.take(update)
        measured = self._throughput.add(moment.steady_seconds, samples, tokens)
        line = snapshot_of(
            update,
            numbers,
            attempt=self._writer.run.attempt,
            timestamp=moment.timestamp,
            wall_clock_hours=self._stopwatch.lap(moment.steady_seconds),
            samples_per_sec=_given_or_rounded(update.throughput_samples_per_sec, measured[0]),
            tokens_per_sec=_given_or_rounded(update.throughput_tokens_per_sec, measured[1]),
        )
        # A sum is non-finite if one of its terms is; only then is it worth checking each of them.
        total = line.loss + numbers.learning_rate + sum(numbers.components.values())
        total += (update.throughput_samples_per_sec or 0.0) + (update.throughput_tokens_per_sec or 0.0)
        if not -_HUGE < total < _HUGE:
            names = nonfinite_names(msgspec.to_builtins(line))
            line = msgspec.structs.replace(line, nonfinite=names or msgspec.UNSET)
        if self._expected_losses is None or self._expected_losses:
            self._check_replay(line)
        self._writer.keep_update(line)

    def _check_replay(self, line: MetricsSnapshot) -> None:
        """Compare a recomputed step with what earlier attempts journalled."""
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
        end = self._journal_end_at_opening
        return read_losses(self._writer.run.folder, first_step=first_step, end=end, max_lines=_MOST_EXPECTED_LINES)


class _StepOrder:
    """The order of the steps of one attempt; says once that a step comes again, and once that the loop goes back."""

    def __init__(self) -> None:
        self._step = -1
        self._counts = (0, 0)
        self._has_warned_of_parts = False
        self._has_warned_of_going_back = False

    def expect_resume(self) -> None:
        """Any step may come next."""
        self._step = -1

    def take(self, update: Update) -> tuple[int, int]:
        """Take the next update; return the samples and tokens processed up to it."""
        before, counts = self._step, self._counts
        self._step, self._counts = update.step, (update.samples_processed, update.tokens_processed)
        if update.step == before:
            self._warn_of_parts(update.step)
            # A part may leave them out.
            self._counts = max(counts[0], self._counts[0]), max(counts[1], self._counts[1])
        elif update.step < before:
            self._warn_of_going_back(before, update.step)
        return self._counts

    def _warn_of_parts(self, step: int) -> None:
        if self._has_warned_of_parts:
            return
        self._has_warned_of_parts = True
        log.warning(
            "Step %s was reported again by the same attempt. The reports of a step are merged: all components are "
            "kept, and of what both name, the loss included, the later value counts. One report per step, with all "
            "of its components, is clearer.",
            f"{step:,}",
        )

    def _warn_of_going_back(self, before: int, step: int) -> None:
        if self._has_warned_of_going_back:
            return
        self._has_warned_of_going_back = True
        log.warning(
            "Step %s was reported after step %s by the same attempt, without a resume in between. The newer reports "
            "count from step %s on; the journal keeps the older ones as superseded. If this is the number of a batch "
            "in its epoch, report the number of optimizer steps since the beginning of the run instead.",
            f"{step:,}",
            f"{before:,}",
            f"{step:,}",
        )


def _given_or_rounded(given: float | None, measured: float | None) -> float | None:
    if given is not None or measured is None:
        return given
    # `round` costs twice as much.
    return int(measured * 1e3) / 1e3


def _or_none(loss: float) -> float | None:
    return loss if -_HUGE <= loss <= _HUGE else None
