"""Hear what a training loop reports, and keep it."""

from __future__ import annotations

import atexit
import logging
import math
import secrets
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from holdfast.checkpoints import choose, digest_of, is_damaged, make_durable, move_aside, size_of
from holdfast.clock import SYSTEM_CLOCK, Clock
from holdfast.digests import BackgroundDigests
from holdfast.disk.atomic import WholeFile
from holdfast.disk.files import REAL_DISK, Disk
from holdfast.disk.lock import BELONGS_TO_PARENT
from holdfast.disk.run_folder import RunFolder
from holdfast.errors import ConfigError, DiskFull, InvalidMetric, RunClosed
from holdfast.heartbeat import Heartbeat
from holdfast.opening import Identity, open_run
from holdfast.reader import losses_from
from holdfast.records import (
    AnswerRecord,
    AnswersRecovered,
    AttemptEnded,
    CheckpointHashed,
    CheckpointMetadata,
    CheckpointRecorded,
    CheckpointSetAside,
    ConnectionFailed,
    MetricsSnapshot,
    Paused,
    ReplayDiffered,
    ResumeChosen,
    TrainingSession,
    nonfinite_names,
)
from holdfast.responses import AnswerStore
from holdfast.rules.history import losses_agree
from holdfast.rules.identity import canonical_config, config_hash, without_secrets
from holdfast.rules.pace import ThroughputWindow, estimate_remaining
from holdfast.rules.session import take_answer
from holdfast.rules.stopwatch import TrainingStopwatch
from holdfast.rules.trends import loss_trend
from holdfast.scalars import as_float, as_int
from holdfast.updates import Measured, Update, WaitingUpdates, measured_at_once
from holdfast.writer import RunWriter, TrackerSettings

__all__ = ["ProgressTracker"]

log = logging.getLogger("holdfast")

_HUGE = sys.float_info.max
_MOST_EXPECTED_LOSSES = 200_000


class ProgressTracker:
    """The writer of one run.

    Whatever a method has returned from survives the death of the process at any instruction; what is promised
    against power loss, full disks and damage stands in `docs/DURABILITY.md`. Every method may be called from any
    thread.
    """

    def __init__(
        self,
        output_dir: str | Path,
        config: Mapping[str, Any],
        total_steps: int,
        session_id: str | None = None,
        *,
        on_config_change: str = "archive",
        fresh: bool = False,
        settings: TrackerSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        disk: Disk = REAL_DISK,
    ) -> None:
        """Begin a run in a progress folder, or take it up where it was left.

        Args:
            output_dir: The progress folder itself.
            config: What the run is; see `rules/identity.py` for the keys that do not matter.
            total_steps: Optimizer steps to train, at least 1.
            session_id: Name of a new session; one that exists keeps its own.
            on_config_change: `archive` (set the old session aside and begin anew), `continue` or `error`.
            fresh: Set the old session aside even where the config is the same.
            settings: How often things are written.
            clock: Where the time comes from.
            disk: Where bytes go.

        Raises:
            RunInUse: another live process writes this run.
            ConfigChanged: the config differs and `on_config_change` is `error`.
            NewerFormat: the run was written by a newer version; nothing was changed.
            ConfigError: `config` is no mapping, `total_steps` no whole number of at least 1, or `session_id` no
                name that a folder can have.
            DiskFull, StorageUnwritable: the folder cannot be written.
        """
        self._settings = settings or TrackerSettings()
        self._clock = clock
        self._disk = disk
        self._folder = RunFolder(Path(output_dir))
        self._lock = threading.RLock()
        self._closed_because: str | None = None
        identity = _identity(config, total_steps, session_id, on_config_change, fresh)
        run = open_run(self._folder, identity, clock=clock, disk=disk)
        self._writer = RunWriter(run, settings=self._settings, clock=clock, disk=disk)
        self._answers = AnswerStore(run.answers)
        self._num_recovered_untold = 0
        self._digests = BackgroundDigests(self._folder)
        self._waiting = WaitingUpdates(self._write_update)
        self._stopwatch = TrainingStopwatch(hours_before=self.session.wall_clock_hours, started_at=clock.steady())
        self._throughput = ThroughputWindow(
            started_at=clock.steady(),
            before=_last_throughput(self.session),
            window_seconds=self._settings.throughput_window_seconds,
        )
        self._journal_end_at_opening = run.metrics.journal.num_bytes
        self._expected_losses: dict[int, float] | None = None
        self._write_snapshots()
        run.lock.give_up = self._give_up
        self._heartbeat = self._started_heartbeat()
        atexit.register(self._close_at_exit)

    @property
    def session(self) -> TrainingSession:
        """All that is known of the session, as of now."""
        if self._num_recovered_untold:
            with self._lock:
                self._tell_recovered()
        return self._writer.session

    @property
    def session_file(self) -> Path:
        """`session.json`."""
        return self._folder.session

    @property
    def progress_file(self) -> Path:
        """`progress.json`."""
        return self._folder.summary

    @property
    def metrics_file(self) -> Path:
        """`metrics.jsonl`."""
        return self._folder.metrics

    @property
    def api_recovery_file(self) -> Path:
        """`api_recovery.jsonl`."""
        return self._folder.answers

    @property
    def checkpoint_manifest(self) -> Path:
        """`checkpoints.json`."""
        return self._folder.manifest

    def update_metrics(
        self,
        step: int,
        loss: Any,
        loss_components: Mapping[str, Any],
        learning_rate: Any,
        samples_processed: int,
        tokens_processed: int,
        throughput_samples_per_sec: float | None = None,
        throughput_tokens_per_sec: float | None = None,
    ) -> None:
        """Keep what one optimizer step has reported; it is in the journal when this returns.

        Numbers may be floats, NumPy scalars or 0-d tensors. One that lies on a CUDA device is not waited for: its
        line is written once the number has arrived, in step order. While the disk is full, lines wait in memory.

        Args:
            step: Optimizer steps done, this one included.
            loss: The total loss.
            loss_components: Its parts by name.
            learning_rate: As used in this step.
            samples_processed: Since the beginning of the run.
            tokens_processed: Since the beginning of the run.
            throughput_samples_per_sec: Computed over a sliding window where it is not given.
            throughput_tokens_per_sec: The same.

        Raises:
            InvalidMetric: a value is no number, or a count is negative; nothing was kept.
            RunClosed: the tracker was closed or replaced.
            DiskFull: the disk has been full for so long that no more lines can wait.
        """
        with self._lock:
            self._require_open()
            update = Update(
                int(self._clock.now() * 1e3) / 1e3,
                self._clock.steady(),
                as_int(step, "step"),
                as_int(samples_processed, "samples_processed"),
                as_int(tokens_processed, "tokens_processed"),
                _float_or_none(throughput_samples_per_sec, "throughput_samples_per_sec"),
                _float_or_none(throughput_tokens_per_sec, "throughput_tokens_per_sec"),
            )
            measured = measured_at_once(loss, loss_components, learning_rate)
            if measured is not None and not self._waiting:
                self._write_update(update, measured)
                return
            self._waiting.add(update, loss, loss_components, learning_rate)
            self._waiting.write_ready()

    def record_checkpoint(
        self,
        step: int,
        checkpoint_path: str | Path,
        dataset_position: int,
        recovery_tags: Iterable[str] | None = None,
        *,
        written: WholeFile | None = None,
        seconds: float | None = None,
    ) -> CheckpointMetadata:
        """Acknowledge a checkpoint: when this returns it is whole on disk and the manifest names it.

        A file or folder that somebody else's code wrote is synced, sized and digested here; a large one is
        digested behind the training, and offered for recovery once that is done. A path that does not exist now
        is recorded as unverified.

        Args:
            step: Optimizer steps done at the checkpoint.
            checkpoint_path: The file, or the folder of a sharded one.
            dataset_position: Samples of the training data consumed so far.
            recovery_tags: Why it is kept; `["periodic"]` where not given.
            written: What `write_whole` returned, where it wrote the file: nothing is read again.
            seconds: How long training stood still for the save; where not given, the time spent here.

        Raises:
            DiskFull, StorageUnwritable: it is not recorded.
            InvalidMetric: a count or `seconds` is no number of at least 0.
            RunClosed: the tracker was closed or replaced.
        """
        self._require_open()
        begun_at = self._clock.steady()
        told_seconds = None if seconds is None else _amount(seconds, "seconds", unit="seconds")
        tags = _tags(recovery_tags)
        checkpoint = self._described(as_int(step, "step"), checkpoint_path, dataset_position, tags, written)
        with self._lock:
            self._require_open()
            self._waiting.write_all()
            checkpoint = msgspec.structs.replace(checkpoint, metrics=_newest(self.session))
            spent = self._clock.steady() - begun_at if told_seconds is None else told_seconds
            self._writer.keep_durably(
                CheckpointRecorded(**self._writer.stamp(), checkpoint=checkpoint, seconds=spent)
            )
            self._writer.write_manifest()
            if checkpoint.num_bytes is not None and checkpoint.sha256 is None:
                self._digests.start(checkpoint)
        return checkpoint

    def get_recovery_checkpoint(self) -> CheckpointMetadata | None:
        """The newest whole checkpoint with its absolute path, or None where none was ever recorded.

        Every byte of a candidate is read. Damaged ones inside the run folder are moved to `set_aside/`.

        Raises:
            NoUsableCheckpoint: some were recorded and none can be used.
        """
        with self._lock:
            self._require_open()
            self._keep_digests(wait=True)
            known, gone = list(self.session.checkpoints.values()), list(self.session.checkpoints_set_aside)
        choice = choose(known, self._folder, set_aside=gone)
        if choice is None:
            return None
        chosen = choice.checkpoint
        with self._lock:
            self._require_open()
            if chosen.num_bytes is None:
                log.warning("%s was never verified; nothing better was recorded.", chosen.checkpoint_path)
            elif chosen.sha256 is None:
                self._digests.start(chosen)
            for checkpoint, reason in choice.refused:
                self._set_aside(checkpoint, reason)
            self._writer.keep(
                ResumeChosen(
                    **self._writer.stamp(),
                    step=chosen.checkpoint_step,
                    checkpoint_path=chosen.checkpoint_path,
                    skipped=[each.checkpoint_path for each, _ in choice.refused],
                )
            )
        if _is_remote(chosen.checkpoint_path):
            return chosen
        path = self._folder.find(chosen.checkpoint_path)
        return msgspec.structs.replace(chosen, checkpoint_path=str(path))

    def record_api_response(self, prompt_hash: str, response: Any, cost: float = 0.0) -> None:
        """Keep a paid answer; it survives a power loss when this returns.

        Args:
            prompt_hash: The key it will be asked for by.
            response: Any JSON object.
            cost: US dollars.

        Raises:
            DiskFull: it is not kept.
            InvalidMetric: it is no JSON object, the key is no text, or the cost is no number of at least 0.
            RunClosed: the tracker was closed or replaced.
        """
        if not isinstance(response, Mapping):
            raise InvalidMetric(f"A response must be a JSON object, got {type(response).__name__}.")
        if not isinstance(prompt_hash, str):
            raise InvalidMetric(f"prompt_hash must be text, got {type(prompt_hash).__name__}.")
        dollars = _amount(cost, "cost", unit="US dollars")
        with self._lock:
            self._require_open()
            answer = AnswerRecord(
                **self._writer.stamp(),
                session_id=self.session.session_id,
                prompt_hash=prompt_hash,
                cost=dollars,
                response=dict(response),
                nonfinite=nonfinite_names({"response": response}) or msgspec.UNSET,
            )
            try:
                place = self._answers.append(answer)
            except (TypeError, ValueError) as error:
                raise InvalidMetric(f"A response must be made of JSON values: {error}.") from error
            take_answer(self.session, answer)
        # Outside the lock: threads that wait for the disk share one sync.
        self._answers.publish(place)

    def get_api_response(self, prompt_hash: str) -> dict[str, Any] | None:
        """The answer kept under a key, by this session or one before it in this folder; None where there is none.

        Raises:
            RunClosed: the tracker was closed or replaced.
        """
        with self._lock:
            self._require_open()
            answer = self._answers.get(prompt_hash)
            self._num_recovered_untold += answer is not None
            return answer

    def record_connection_failure(self, retry_count: int, error: object) -> None:
        """Keep that a request failed and how often it had been tried again; keys in the error are hidden."""
        with self._lock:
            self._require_open()
            self._writer.keep(
                ConnectionFailed(
                    **self._writer.stamp(),
                    retry_count=as_int(retry_count, "retry_count"),
                    error=without_secrets(str(error)),
                )
            )

    def record_pause(self, duration: float) -> None:
        """Keep that training has just stood still on purpose for `duration` seconds; pauses are no training time.

        Raises:
            InvalidMetric: `duration` is negative or no number.
        """
        seconds = _amount(duration, "duration", unit="seconds")
        with self._lock:
            self._require_open()
            # Updates from before the pause are timed before it; the device has had the pause to finish.
            self._waiting.write_all()
            left_out = self._stopwatch.leave_out(seconds, self._clock.steady())
            self._throughput.shift(left_out)
            self._writer.keep(Paused(**self._writer.stamp(), seconds=seconds))

    def get_loss_trend(self, window_size: int = 100) -> dict[str, Any]:
        """What the newest losses (at most 1,000) say; see `rules/trends.py` for the names."""
        with self._lock:
            losses = [line.loss for line in self.session.metrics_history]
            average = self.session.moving_avg_loss
        return loss_trend(losses, moving_avg_loss=average, window_size=window_size)

    def get_progress_summary(self) -> dict[str, Any]:
        """The fields of `progress.json`, as of now; see `rules/summary.py` for the names."""
        with self._lock:
            self._tell_recovered()
            session = self._writer.session_as_of_now()
            hours = self._stopwatch.hours(self._clock.steady())
            return self._writer.summary(session, wall_clock_hours=hours, num_pending=len(self._waiting))

    def get_remaining_seconds(self) -> float | None:
        """Training time to the last step at the recent pace; None while that is unknown."""
        with self._lock:
            session = self.session
            estimate = estimate_remaining(session.pace, session.total_steps_target - session.steps_completed)
        return None if estimate is None else estimate.seconds

    def save(self) -> None:
        """Make everything durable now, and write all snapshots.

        Raises:
            DiskFull: something could not be written.
            RunClosed: the tracker was closed or replaced.
        """
        with self._lock:
            self._require_open()
            self._waiting.write_all()
            self._finish_writing()

    def close(self, how: str = "completed", error: BaseException | None = None) -> None:
        """End the attempt in good order; a second call does nothing.

        Args:
            how: `completed`, `preempted` or `raised`.
            error: What was raised.

        Raises:
            DiskFull: the last lines could not be written.
        """
        if self._is_closed():
            return
        if self._heartbeat is not None:
            self._heartbeat.stop()
        with self._lock:
            if self._is_closed():
                return
            try:
                self._end_attempt(how, error)
            finally:
                self._closed_because = "is closed"
                self._digests.close()
                self._writer.run.close()
                atexit.unregister(self._close_at_exit)

    def _end_attempt(self, how: str, error: BaseException | None) -> None:
        self._waiting.write_all()
        self._keep_digests(wait=True)
        self._tell_recovered()
        self._writer.keep(
            AttemptEnded(
                **self._writer.stamp(),
                how=how,
                error=None if error is None else without_secrets(f"{type(error).__name__}: {error}"),
                wall_clock_hours=self._stopwatch.hours(self._clock.steady()),
            )
        )
        self._finish_writing()

    def _finish_writing(self) -> None:
        self._tell_recovered()
        has_written_all = self._writer.write_waiting()
        self._writer.sync()
        self._write_snapshots()
        if not has_written_all:
            raise DiskFull(self._folder.progress)

    def _write_update(self, update: Update, measured: Measured) -> None:
        samples_per_sec, tokens_per_sec = self._throughput.add(update.steady_seconds, update.samples, update.tokens)
        line = MetricsSnapshot(
            attempt=self._writer.run.attempt,
            step=update.step,
            timestamp=update.timestamp,
            wall_clock_hours=self._stopwatch.lap(update.steady_seconds),
            loss=measured.loss,
            loss_components=measured.components,
            learning_rate=measured.learning_rate,
            samples_processed=update.samples,
            tokens_processed=update.tokens,
            throughput_samples_per_sec=_given_or_rounded(update.samples_per_sec, samples_per_sec),
            throughput_tokens_per_sec=_given_or_rounded(update.tokens_per_sec, tokens_per_sec),
        )
        # A sum is not finite as soon as one of its parts is not; looking closer costs time only then.
        total = measured.loss + measured.learning_rate + sum(measured.components.values())
        total += (update.samples_per_sec or 0.0) + (update.tokens_per_sec or 0.0)
        if not -_HUGE < total < _HUGE:
            names = nonfinite_names(msgspec.to_builtins(line))
            line = msgspec.structs.replace(line, nonfinite=names or msgspec.UNSET)
        if self._expected_losses != {}:
            self._check_replay(line)
        self._writer.keep_update(line)

    def _check_replay(self, line: MetricsSnapshot) -> None:
        """Compare a recomputed step with what the attempts before this one have journalled."""
        if self._expected_losses is None:
            self._expected_losses = self._losses_to_repeat(line.step)
        before = self._expected_losses.pop(line.step, None)
        if before is None or losses_agree(before, line.loss):
            return
        self._expected_losses = {}
        log.warning(
            "Step %s was computed again and its loss came out different (%r before, %r now): this attempt does "
            "not repeat the earlier one bit for bit. Code, data, libraries or hardware may have changed.",
            f"{line.step:,}",
            before,
            line.loss,
        )
        self._writer.keep(
            ReplayDiffered(
                **self._writer.stamp(), step=line.step, loss_before=_or_none(before), loss_now=_or_none(line.loss)
            )
        )

    def _losses_to_repeat(self, first_step: int) -> dict[int, float]:
        """What earlier attempts journalled from the first step of this one on; nothing where they ended before."""
        if first_step > self.session.steps_completed:
            return {}
        end = self._journal_end_at_opening
        return losses_from(self._folder, step=first_step, end=end, most=_MOST_EXPECTED_LOSSES)

    def _described(
        self,
        step: int,
        checkpoint_path: str | Path,
        dataset_position: int,
        tags: list[str],
        written: WholeFile | None,
    ) -> CheckpointMetadata:
        """What the manifest will say of a checkpoint, which is durable when this returns."""
        path = Path(checkpoint_path)
        is_remote = _is_remote(str(checkpoint_path))
        checkpoint = CheckpointMetadata(
            checkpoint_step=step,
            checkpoint_path=str(checkpoint_path) if is_remote else self._folder.spell(path),
            created_at=self._clock.now(),
            metrics=None,
            dataset_position=as_int(dataset_position, "dataset_position"),
            recovery_tags=tags,
            attempt=self._writer.run.attempt,
        )
        if written is not None:
            return msgspec.structs.replace(checkpoint, num_bytes=written.num_bytes, sha256=written.sha256)
        if is_remote or not path.exists():
            log.warning("%s is not there now: it is recorded, but cannot be verified.", checkpoint_path)
            return checkpoint
        make_durable(path, disk=self._disk)
        num_bytes = size_of(path)
        if num_bytes >= self._settings.large_checkpoint_bytes:
            return msgspec.structs.replace(checkpoint, num_bytes=num_bytes)
        digest = digest_of(path)
        return msgspec.structs.replace(
            checkpoint, num_bytes=digest.num_bytes, sha256=digest.sha256, files=digest.files
        )

    def _keep_digests(self, *, wait: bool) -> None:
        """Tell the manifest what was digested behind the training."""
        if wait:
            self._digests.wait()
        finished = self._digests.finished()
        for checkpoint, digest in finished:
            self._writer.keep_durably(
                CheckpointHashed(
                    **self._writer.stamp(),
                    step=checkpoint.checkpoint_step,
                    checkpoint_path=checkpoint.checkpoint_path,
                    num_bytes=digest.num_bytes,
                    sha256=digest.sha256,
                    files=digest.files,
                )
            )
        if finished:
            self._writer.write_manifest()

    def _set_aside(self, checkpoint: CheckpointMetadata, reason: str) -> None:
        log.warning("Passing over %s: %s.", checkpoint.checkpoint_path, reason)
        moved_to = None
        if is_damaged(checkpoint, self._folder):
            moved_to = move_aside(checkpoint, self._folder, disk=self._disk)
        if moved_to is None:
            return
        self._writer.keep(
            CheckpointSetAside(
                **self._writer.stamp(),
                step=checkpoint.checkpoint_step,
                checkpoint_path=checkpoint.checkpoint_path,
                reason=reason,
                moved_to=self._folder.spell(moved_to),
            )
        )
        self._writer.write_manifest()

    def _tell_recovered(self) -> None:
        """Journal how many answers were served from the disk; one line for many, since they cost nothing."""
        if self._num_recovered_untold and not self._is_closed():
            count, self._num_recovered_untold = self._num_recovered_untold, 0
            self._writer.keep(AnswersRecovered(**self._writer.stamp(), count=count))

    def _started_heartbeat(self) -> Heartbeat | None:
        if not self._settings.has_heartbeat:
            return None
        interval = min(self._settings.sync_interval_seconds, self._settings.summary_interval_seconds)
        return Heartbeat(self._beat, interval_seconds=interval)

    def _beat(self) -> None:
        """Housekeeping beside the training: what is slow happens outside the lock."""
        with self._lock:
            if self._is_closed():
                return
            self._waiting.write_ready()
            self._keep_digests(wait=False)
            self._writer.write_waiting()
            self._tell_recovered()
        self._writer.sync()
        summary = self.get_progress_summary()
        self._writer.write_summary(summary)
        content = None
        with self._lock:
            if self._writer.is_session_file_due:
                content = self._writer.session_content()
        self._writer.write_session(content)

    def _write_snapshots(self) -> None:
        self._writer.write_summary(self.get_progress_summary())
        self._writer.write_manifest()
        self._writer.write_session(self._writer.session_content())

    def _is_closed(self) -> bool:
        return self._closed_because is not None

    def _require_open(self) -> None:
        if self._closed_because is not None:
            raise RunClosed(self._folder.root, why=self._closed_because)

    def _give_up(self, why: str) -> None:
        """Another tracker of this process takes the run over, or this is a forked child."""
        if why == BELONGS_TO_PARENT:
            # The lock and the thread are the parent's; of the files, a child has copies of its own.
            self._closed_because = why
            # Another thread of the parent may have held it at the fork, and is not here to let it go.
            self._lock = threading.RLock()
            self._writer.run.close_files()
            return
        self.close("replaced")
        self._closed_because = why

    def _close_at_exit(self) -> None:
        """Whoever forgets to close still ends in good order, unless the process was killed."""
        error = getattr(sys, "last_value", None)
        self.close("completed" if error is None else "raised", error)


def _identity(
    config: Mapping[str, Any], total_steps: int, session_id: str | None, on_config_change: str, fresh: bool
) -> Identity:
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"A config must be a mapping, got {type(config).__name__}.",
            hint="Pass a dict, such as a YAML mapping.",
        )
    try:
        num_steps = as_int(total_steps, "total_steps")
    except InvalidMetric as error:
        raise ConfigError(error.message, hint="Set the number of optimizer steps to train.") from error
    canonical = canonical_config(config)
    return Identity(
        session_id=session_id or f"training_{secrets.token_hex(6)}",
        config=canonical,
        config_hash=config_hash(canonical),
        total_steps=num_steps,
        on_config_change=on_config_change,
        is_fresh=fresh,
    )


def _last_throughput(session: TrainingSession) -> tuple[float | None, float | None]:
    newest = _newest(session)
    return (newest.throughput_samples_per_sec, newest.throughput_tokens_per_sec) if newest else (None, None)


def _newest(session: TrainingSession) -> MetricsSnapshot | None:
    return session.metrics_history[-1] if session.metrics_history else None


def _tags(recovery_tags: Iterable[str] | None) -> list[str]:
    if recovery_tags is None:
        return ["periodic"]
    return [recovery_tags] if isinstance(recovery_tags, str) else [str(tag) for tag in recovery_tags]


def _amount(value: Any, name: str, *, unit: str) -> float:
    """A number that sums can be made of."""
    amount = as_float(value, name)
    if not 0 <= amount < math.inf:
        raise InvalidMetric(f"{name} must be a finite number of at least 0, got {amount}.", hint=f"Pass {unit}.")
    return amount


def _float_or_none(value: Any, name: str) -> float | None:
    return None if value is None else as_float(value, name)


def _given_or_rounded(given: float | None, measured: float | None) -> float | None:
    if given is not None or measured is None:
        return given
    # `round` costs twice as much.
    return int(measured * 1e3) / 1e3


def _or_none(loss: float) -> float | None:
    return loss if -_HUGE <= loss <= _HUGE else None


def _is_remote(path: str) -> bool:
    return "://" in path
