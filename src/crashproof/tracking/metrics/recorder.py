"""Turn updates into lines of the journal."""

from __future__ import annotations

import logging
import sys

import msgspec

from crashproof.clock import Clock
from crashproof.odd_values import OddValues
from crashproof.records.events import Paused
from crashproof.records.lines.codec import nonfinite_names
from crashproof.records.metrics import MetricsSnapshot, Numbers, Update, snapshot_of
from crashproof.rules.pace import ThroughputWindow
from crashproof.rules.stopwatch import StandstillDetector, TrainingStopwatch
from crashproof.scalars import LARGEST_INT
from crashproof.tracking.heartbeat import current_tick
from crashproof.tracking.metrics.pending_updates import (
    Moment,
    PendingUpdates,
    as_reported,
    floats_of,
    numbers_on_host,
)
from crashproof.tracking.metrics.replay_check import ReplayCheck
from crashproof.tracking.metrics.step_order import StepOrder
from crashproof.tracking.run_writer import RunWriter

__all__ = ["MetricsRecorder"]

log = logging.getLogger("crashproof")

_HUGE = sys.float_info.max


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
        self._now, self._steady = clock.now, clock.steady
        self._attempt = writer.attempt
        newest = writer.newest_update
        self._stopwatch = TrainingStopwatch(hours_before=writer.session.wall_clock_hours, started_at=clock.steady())
        self._throughput = ThroughputWindow(
            started_at=clock.steady(),
            before=(newest.throughput_samples_per_sec, newest.throughput_tokens_per_sec) if newest else (None, None),
            window_seconds=throughput_window_seconds,
        )
        self._pending = PendingUpdates(self._write)
        self._replay = ReplayCheck(writer)
        self._order = StepOrder()

    @property
    def num_pending(self) -> int:
        """Updates whose numbers are still on a device."""
        return len(self._pending)

    def hours_trained(self) -> float:
        """Training time up to now, without pauses and downtime."""
        return self._stopwatch.hours(self._steady())

    def record_plain(
        self, step: object, loss: object, components: object, learning_rate: object, samples: object, tokens: object
    ) -> bool:
        """Write an update of Python's own numbers, as nearly all are; return whether it was one.

        False, with nothing done, for any other value, for a step that is not the next one, and where something has to
        be done first: those are for `record`. This is one function, as a call costs a tenth of what a line does.
        """
        if type(loss) is not float or type(learning_rate) is not float or type(components) is not dict:
            return False
        if type(step) is not int or type(samples) is not int or type(tokens) is not int:
            return False
        order, moment = self._order, self._steady()
        if not order.step < step <= LARGEST_INT or self._pending.queue or self._replay.is_due:
            return False
        if samples < order.samples or tokens < order.tokens or moment > self._standstills.late_at:
            return False
        if samples > LARGEST_INT or tokens > LARGEST_INT:
            return False
        numbers, total = components.copy(), loss + learning_rate
        for name, value in numbers.items():
            if type(value) is not float or type(name) is not str or not name.isascii():
                return False
            total += value
        if not -_HUGE < total < _HUGE:
            return False
        order.step, order.samples, order.tokens = step, samples, tokens
        samples_per_sec, tokens_per_sec = self._throughput.add(moment, samples, tokens)
        self._writer.keep_update(
            MetricsSnapshot(
                attempt=self._attempt,
                step=step,
                timestamp=self._now() * 1e3 // 1.0 / 1e3,
                wall_clock_hours=self._stopwatch.lap(moment),
                loss=loss,
                loss_components=numbers,
                learning_rate=learning_rate,
                samples_processed=samples,
                tokens_processed=tokens,
                throughput_samples_per_sec=None if samples_per_sec is None else samples_per_sec * 1e3 // 1.0 / 1e3,
                throughput_tokens_per_sec=None if tokens_per_sec is None else tokens_per_sec * 1e3 // 1.0 / 1e3,
            )
        )
        return True

    def record(self, update: Update) -> None:
        """Write one update, or queue it until its numbers arrive; see `ProgressTracker.update_metrics`."""
        moment = Moment(int(self._now() * 1e3) / 1e3, self._steady())
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

    def expect_other_losses(self) -> None:
        """Compare no further step with earlier attempts: it is about to be computed from other samples."""
        self._replay.stop()

    def record_pause(self, seconds: float) -> None:
        """Record a pause that ends now, and leave it out of the training time."""
        # Updates from before the pause are timed before it; the device has had the pause to finish.
        self._pending.write_all()
        left_out = self._stopwatch.leave_out(seconds, self._steady())
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
        left_out = self._stopwatch.leave_out(by_steady_clock, self._steady() if moment is None else moment)
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
        if self._replay.is_due:
            self._replay.check(line)
        self._writer.keep_update(line)


def _given_or_rounded(given: float | None, measured: float | None) -> float | None:
    if given is not None or measured is None:
        return given
    # `round` costs twice as much.
    return int(measured * 1e3) / 1e3
