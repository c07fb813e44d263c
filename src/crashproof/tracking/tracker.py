"""The tracker of a run."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from crashproof.alerts.monitor import AlertMonitor
from crashproof.answers.run_store import RunResponses
from crashproof.checkpoints.digest import Digest
from crashproof.checkpoints.select import choose, choose_for
from crashproof.clock import SYSTEM_CLOCK, BootClock, Clock
from crashproof.disk.atomic import WholeFile
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import InvalidMetric, SavesFailed, StorageError
from crashproof.odd_values import OddValues
from crashproof.records.bad_steps import DataWindow
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.events import (
    AttemptEnded,
    ConnectionFailed,
    EvaluationRecorded,
    JobAdvanced,
    RankTimesMeasured,
    SpendingReported,
)
from crashproof.records.lines.codec import nonfinite_names
from crashproof.records.metrics import Update
from crashproof.records.proof.environment import ENVIRONMENT_VARIABLE
from crashproof.records.rank_times import RankTimes
from crashproof.records.requests import Spending
from crashproof.records.session import TrainingSession
from crashproof.records.states import AttemptState, BadStepAction, OnConfigChange, SessionKind
from crashproof.records.supervision import Phase
from crashproof.rules.bad_steps.finding import BadStepFinding
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.identity import IdentityRules
from crashproof.rules.pace import pace_of
from crashproof.rules.saves.failures import is_last_chance
from crashproof.rules.secrets.texts import without_secrets
from crashproof.rules.session import update_at
from crashproof.rules.stopwatch import StandstillDetector
from crashproof.rules.time_left.estimate import estimate_remaining
from crashproof.rules.trends import trend_of_session
from crashproof.scalars import as_amount, as_float, as_int
from crashproof.tracking.bad_steps.recorder import BadStepRecorder
from crashproof.tracking.bad_steps.verdict import StepVerdict
from crashproof.tracking.checkpoint_recorder import CheckpointRecorder
from crashproof.tracking.checkpoint_removal import CheckpointRemoval
from crashproof.tracking.heartbeat import Heartbeat
from crashproof.tracking.metrics.recorder import MetricsRecorder
from crashproof.tracking.open_run import open_run
from crashproof.tracking.requested_session import RequestedSession
from crashproof.tracking.run_guard import GuardState, RunGuard
from crashproof.tracking.run_writer import RunWriter
from crashproof.tracking.settings import TrackerSettings
from crashproof.tracking.supervised.link import SupervisorLink
from crashproof.tracking.upkeep import Upkeep

if TYPE_CHECKING:
    from crashproof.tracking.witness.joining import JoinedProof

__all__ = ["ProgressTracker"]

log = logging.getLogger("crashproof")

_OPEN = GuardState.OPEN


class ProgressTracker:
    """The writer of one run.

    What a method has recorded when it returns survives the death of the process at any instruction;
    `docs/DURABILITY.md` has the promises about power loss, full disks and damage. Every method may be called from any
    thread.
    """

    def __init__(
        self,
        output_dir: str | Path,
        config: Mapping[str, Any],
        total_steps: int,
        session_id: str | None = None,
        *,
        on_config_change: OnConfigChange | str = OnConfigChange.ARCHIVE,
        ignore_config_keys: Sequence[str] = (),
        config_defaults: Mapping[str, Any] | None = None,
        fresh: bool = False,
        kind: SessionKind = SessionKind.TRAINING,
        settings: TrackerSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        disk: Disk = REAL_DISK,
    ) -> None:
        """Begin a run in a progress folder, or continue the one in it.

        Args:
            output_dir: The progress folder itself.
            config: The identity of the run; `rules/identity/table.py` has the keys that do not count.
            total_steps: Optimizer steps to train, at least 1.
            session_id: Name of a new session; one that exists keeps its own.
            on_config_change: `archive` (archive the old session and begin a new one), `continue` or `error`.
            ignore_config_keys: Further dotted keys that do not count, or patterns such as `wandb_*` and
                `data.*.path`; one that names a section covers all in it.
            config_defaults: What the absence of a key means, for keys that a library's next version may add.
            fresh: Begin a new session even if the config is the same.
            kind: What the steps of a new session are.
            settings: Intervals, limits, retention and alerts.
            clock: The source of time.
            disk: The file operations.

        Raises:
            RunInUse: another live process writes this run.
            ConfigChanged: the config differs and `on_config_change` is `error`.
            NewerFormat: the run was written by a newer version; nothing was changed.
            ConfigError: `config` is not a mapping, `total_steps` not a whole number of at least 1, `session_id`
                cannot name a folder, or `ignore_config_keys` is no list of texts.
            DiskFull, StorageUnwritable: the folder cannot be written.
        """
        self._settings = settings or TrackerSettings()
        self._clock = clock
        self._disk = disk
        self._folder = RunFolder(Path(output_dir))
        requested = RequestedSession.from_arguments(
            config,
            total_steps,
            session_id=session_id,
            on_config_change=on_config_change,
            rules=IdentityRules.of(ignore_config_keys, config_defaults),
            is_fresh=fresh,
            kind=kind,
        )
        joined = self._join_proof(requested.config_hash)
        self._proof = None if joined is None else joined.proof
        self.is_under_proof = joined is not None
        """Whether `crashproof prove` has started this process, so that `witness` does something."""
        run = open_run(self._folder, requested, clock=clock, disk=disk)
        self._guard = RunGuard(self._folder.root, run.lock)
        self._writer = RunWriter(run, settings=self._settings, clock=clock, disk=disk)
        self._responses = RunResponses(self._writer, self._guard, disk=disk)
        self._supervisor = SupervisorLink.of(os.environ)
        self._odd_values = OddValues()
        self._standstills = StandstillDetector(interval_seconds=self._settings.heartbeat_seconds)
        self._metrics = (MetricsRecorder if joined is None else joined.new_metrics)(
            self._writer,
            clock=clock,
            throughput_window_seconds=self._settings.throughput_window_seconds,
            standstills=self._standstills,
            odd_values=self._odd_values,
        )
        self._checkpoints = (CheckpointRecorder if joined is None else joined.new_checkpoints)(
            self._writer, large_checkpoint_bytes=self._settings.large_checkpoint_bytes, clock=clock, disk=disk
        )
        self._bad_steps = BadStepRecorder(self._writer)
        self._removal = CheckpointRemoval(self._writer, self._guard, self._checkpoints)
        self._alerts = AlertMonitor(self._writer, self._settings.alerts)
        self._upkeep = Upkeep(
            self._writer,
            self._guard,
            metrics=self._metrics,
            checkpoints=self._checkpoints,
            removal=self._removal,
            responses=self._responses,
            alerts=self._alerts,
            clock=clock,
        )
        self._upkeep.on_intrusion = self._stop_at_intrusion
        self._alerts.report_earlier_crashes()
        self._upkeep.write_snapshots()
        self._guard.watch(on_takeover=self._close_replaced, on_fork=self._leave_to_parent)
        self._heartbeat = self._start_heartbeat()
        self._supervisor.announce(self._folder.progress, run.attempt)
        atexit.register(self._close_at_exit)

    @property
    def session(self) -> TrainingSession:
        """The state of the session, as of now."""
        self._upkeep.apply_updates()
        with self._guard.lock:
            if self._guard.is_open():
                self._responses.tell_served()
            return self._writer.session

    @property
    def responses(self) -> RunResponses:
        """The run's own store of teacher answers, for a teacher client."""
        return self._responses

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
        loss: object,
        loss_components: Mapping[str, object],
        learning_rate: object,
        samples_processed: int,
        tokens_processed: int,
        throughput_samples_per_sec: float | None = None,
        throughput_tokens_per_sec: float | None = None,
    ) -> None:
        """Record one optimizer step; it is in the journal when this returns.

        Numbers may be floats, decimals, NumPy scalars or 0-d tensors. One on a CUDA device is not waited for: its
        line is written once the number has arrived, in step order. While the disk is full, lines wait in memory.

        A value that is not a number does not end a training: it is left out, and the log says so once, by name. A
        step without a loss counts, and is not a step with a NaN loss.

        Args:
            step: Optimizer steps done, this one included; in a loop that counts from 0, the number of the step.
                A second report of the newest step is merged into it; an earlier step supersedes all from there on.
            loss: The total loss; None if there is none.
            loss_components: Its parts by name; nested ones are recorded as `outer/inner`.
            learning_rate: As used in this step.
            samples_processed: Since the beginning of the run.
            tokens_processed: Since the beginning of the run.
            throughput_samples_per_sec: By default, measured over a sliding window.
            throughput_tokens_per_sec: Likewise.

        Raises:
            InvalidMetric: `step` is not a whole number of at least 0; nothing was recorded.
            RunClosed: the tracker was closed or replaced.
            DiskFull: the disk has been full for so long that no more lines fit into memory.
        """
        guard = self._guard
        if throughput_samples_per_sec is None and throughput_tokens_per_sec is None:
            with guard.lock:
                if guard.state is _OPEN and self._metrics.record_plain(
                    step, loss, loss_components, learning_rate, samples_processed, tokens_processed
                ):
                    return
        odd, known = self._odd_values, self.session
        update = Update(
            step=as_int(step, "step"),
            loss=loss,
            loss_components=loss_components,
            learning_rate=learning_rate,
            samples_processed=odd.count(samples_processed, "samples_processed", otherwise=known.samples_processed),
            tokens_processed=odd.count(tokens_processed, "tokens_processed", otherwise=known.tokens_processed),
            throughput_samples_per_sec=_rate(odd, throughput_samples_per_sec, "throughput_samples_per_sec"),
            throughput_tokens_per_sec=_rate(odd, throughput_tokens_per_sec, "throughput_tokens_per_sec"),
        )
        if self._proof is not None:
            # Without the lock: a save in the background may end meanwhile.
            self._proof.before_update()
        with self._guard:
            self._metrics.record(update)

    def witness(self, **components: object) -> None:
        """Show `crashproof prove` what the newest step has left behind; costs nothing unless a proof is under way.

        Call it after the step's `update_metrics`; a loop that calls it before shows the step that it reports next.

        Args:
            components: By name: `model`, `optimizer`, `scheduler`, `scaler`, `ema`, and whatever else a resume has to
                restore: anything with a `state_dict()`, tensors, arrays, random generators, numbers, containers of
                these. `batch` is special: the ids of the samples, or the batch itself.
        """
        if self._proof is not None:
            self._proof.show(components)

    def record_checkpoint(
        self,
        step: int,
        checkpoint_path: str | Path,
        dataset_position: int,
        recovery_tags: Iterable[str] | None = None,
        *,
        written: WholeFile | Digest | None = None,
        seconds: float | None = None,
        save_seconds: float | None = None,
        is_best: bool | None = False,
    ) -> CheckpointMetadata:
        """Acknowledge a checkpoint: when this returns it is durable and the manifest names it.

        A file or folder that other code wrote is synced, sized and digested here; a large one is digested in the
        background, and can be verified once that is done. A path that does not exist now is recorded as unverified.
        An asynchronous save may be recorded from its own thread, after updates of later steps: it gets the metrics of
        its own step.

        With a retention rule in the settings (`keep`), the checkpoint is then read back, and only if it is intact are
        those that the rule does not keep removed.

        Args:
            step: Optimizer steps done at the checkpoint.
            checkpoint_path: The file, or the folder of a sharded one.
            dataset_position: Samples of the training data consumed so far; if it is no count, the samples that the
                update of the step reported stand for it.
            recovery_tags: Why it is kept; `["periodic"]` by default.
            written: What `write_atomically` returned for the file, or the `digest_of_files` of a durable folder whose
                files were digested while they were written: nothing is read again.
            seconds: How long training stood still for the save; by default, the time spent here.
            save_seconds: How long the save took from its beginning on, where training did not wait for it.
            is_best: Whether to add the tag `best_loss`; None: if its loss is below that of every checkpoint recorded
                before it.

        Raises:
            DiskFull, StorageUnwritable: it is not recorded.
            SavesFailed: likewise, and more saves in a row have failed than `max_failed_saves` of the settings allows.
            InvalidMetric: `step` is not a whole number of at least 0, or the path holds the run's own files.
            RunClosed: the tracker was closed or replaced.
        """
        self._guard.require_open()
        started_at = self._clock.steady()
        given_seconds = self._odd_values.amount(seconds, "seconds", unit="seconds")
        took_seconds = self._odd_values.amount(save_seconds, "save_seconds", unit="seconds")
        position = self._position(step, dataset_position)
        try:
            checkpoint = self._checkpoints.describe(step, checkpoint_path, position, recovery_tags, written)
            with self._guard:
                self._metrics.write_all()
                stood_still = self._clock.steady() - started_at if given_seconds is None else given_seconds
                recorded = self._checkpoints.record(
                    checkpoint, seconds=stood_still, save_seconds=took_seconds, is_best=is_best
                )
        except (StorageError, OSError) as error:
            self.record_checkpoint_failure(step, error)
            raise
        self._removal.keep_previous([recorded], is_replaced=isinstance(written, WholeFile))
        rule = self._settings.keep
        if rule is not None:
            # Those that cannot be removed stay for now.
            self._removal.remove(lambda session: self._checkpoints.stale(session, rule))
        if self._heartbeat is not None:
            self._heartbeat.start()
        return recorded

    def record_checkpoint_failure(self, step: int, error: object) -> None:
        """Record that a checkpoint could not be saved, where your loop goes on without it.

        The status, the page and the alert `saves_failing` tell how many in a row have failed, and how old the newest
        checkpoint is; the next `record_checkpoint` that succeeds ends the row. A failure of `record_checkpoint`
        itself is recorded already, and a step counts once.

        Args:
            step: Optimizer steps done at the failed save.
            error: The exception, or a text; secrets in it are hidden.

        Raises:
            SavesFailed: more saves in a row have failed than `max_failed_saves` of the settings allows.
            InvalidMetric: `step` is not a whole number of at least 0.
            RunClosed: the tracker was closed or replaced.
        """
        failed_step = as_int(step, "step")
        with self._guard:
            num_failed = self._checkpoints.record_failure(failed_step, error)
            saved_step = self._writer.session.last_checkpoint_step
            if self._heartbeat is None:
                self._upkeep.check_alerts()
        if is_last_chance(num_failed - 1, self._settings.max_failed_saves):
            cause = error if isinstance(error, Exception) else StorageError(f"{error}")
            raise SavesFailed(step=failed_step, num_failed=num_failed, error=cause, saved_step=saved_step) from cause

    def remove_checkpoint(self, checkpoint_path: str | Path) -> bool:
        """Remove a recorded checkpoint that the caller does not keep; return whether it is removed.

        As with a retention rule in the settings, it is only removed if it lies in the run's folder and a newer one is
        read back and intact. If it has to stay, try again after the next checkpoint.

        Raises:
            RunClosed: the tracker was closed or replaced.
        """
        self._guard.require_open()
        path = Path(checkpoint_path)
        return self._removal.remove(lambda session: self._checkpoints.unwanted(session, path))

    def quarantine_checkpoint(self, checkpoint_path: str | Path, step: int, reason: str) -> None:
        """Move a checkpoint that cannot be used out of the way, into `progress/set_aside/`, and journal why.

        Raises:
            RunClosed: the tracker was closed or replaced.
        """
        with self._guard:
            self._checkpoints.quarantine(Path(checkpoint_path), step, reason)

    def record_evaluation(self, step: int, results: Mapping[str, Any], seconds: float | None = None) -> None:
        """Record results on held-out data.

        A checkpoint at the same step gets them too, whichever of the two is recorded first.

        Args:
            step: Optimizer steps done.
            results: Numbers by name, such as `{"perplexity": 12.5}`; nested ones are recorded as `outer/inner`, and
                what is not a number is left out and named once in the log.
            seconds: How long training stood still for it; this does not count as productive time.

        Raises:
            InvalidMetric: `step` is not a whole number of at least 0.
            RunClosed: the tracker was closed or replaced.
        """
        num_steps = as_int(step, "step")
        found = self._odd_values.numbers(results, "results")
        numbers = {name: as_float(value, name) for name, value in found.items()}
        stood_still = self._odd_values.amount(seconds, "seconds", unit="seconds") or 0.0
        if not numbers and not stood_still:
            return
        with self._guard:
            self._writer.keep(
                EvaluationRecorded(
                    **self._writer.stamp(),
                    step=num_steps,
                    results=numbers,
                    seconds=stood_still,
                    nonfinite=nonfinite_names({"results": numbers}) or UNSET,
                    rewinds=self._writer.rewinds or UNSET,
                )
            )
            if CheckpointCatalog(self._writer.session).at_step(num_steps):
                self._writer.write_manifest()

    def check_step(self) -> StepVerdict:
        """Judge the steps that were reported since the last call: is a loss not finite, or a spike?

        A spike is far above the newest healthy losses; with fewer than 16 of these, only a non-finite loss is bad.
        The first bad step is recorded, and a checkpoint recorded at it is tagged `bad_loss`: a restart prefers a
        healthy one. A number that is still on a device is not waited for, but judged by a later call.

        Raises:
            RunClosed: the tracker was closed or replaced.
        """
        with self._guard:
            self._metrics.write_ready()
            return self._bad_steps.check()

    def record_bad_step(self, finding: BadStepFinding, action: BadStepAction) -> None:
        """Record a bad step that a training loop found by itself, and what it does about it; durable at return.

        Raises:
            StorageError, OSError: it is not recorded.
            RunClosed: the tracker was closed or replaced.
        """
        with self._guard:
            self._metrics.write_all()
            self._bad_steps.record(finding, action)

    def record_passed_step(self, step: int, loss: float) -> None:
        """Record that a bad step was fine when it was computed again from the same samples.

        Raises:
            RunClosed: the tracker was closed or replaced.
        """
        with self._guard:
            self._bad_steps.record_passed(step, loss)

    def leave_data_out(self, data: Sequence[DataWindow], step: int = 0) -> None:
        """Record that samples are left out of the run from now on; it survives a power loss when this returns.

        `session.data_left_out` has all of them; the training loop is what leaves them out.

        Args:
            data: Positions in the order of samples.
            step: The step that was bad with them.

        Raises:
            StorageError, OSError: it is not recorded.
            RunClosed: the tracker was closed or replaced.
        """
        with self._guard:
            self._bad_steps.leave_out(data, step)
            self._metrics.expect_other_losses()

    def record_rank_times(self, times: RankTimes) -> None:
        """Record how long each rank of the run works on a step.

        Raises:
            RunClosed: the tracker was closed or replaced.
        """
        with self._guard:
            self._writer.keep(RankTimesMeasured(**self._writer.stamp(), times=times))

    def get_recovery_checkpoint(self, *, before_step: int | None = None) -> CheckpointMetadata | None:
        """The newest intact checkpoint with its absolute path, or None if none was ever recorded.

        Every byte of a candidate is read. Damaged ones inside the run folder are moved to `set_aside/`. Those taken
        while the loss was bad come after all healthy ones.

        Args:
            before_step: Choose a healthy one that does not contain this step, to go back to from a bad step.

        Raises:
            NoUsableCheckpoint: some were recorded, but none can be used.
        """
        with self._guard:
            self._metrics.expect_resume()
            digested = self._checkpoints.keep_digests(wait=True)
            session = self._writer.session_as_of_now()
        # Outside the lock: reading gigabytes takes a while.
        self._removal.keep_previous(digested, is_replaced=False)
        if before_step is None:
            choice = choose_for(session, self._folder)
        else:
            choice = choose(CheckpointCatalog(session).to_go_back_to(before_step), self._folder)
        if choice is None:
            return None
        with self._guard:
            located = self._checkpoints.offer(choice)
            self._bad_steps.begin_after(choice.checkpoint.next_step - 1)
        # A kill may have come between its record and the copy of its bytes.
        self._removal.keep_previous([choice.checkpoint], is_replaced=False)
        return located

    def record_api_response(self, prompt_hash: str, response: Mapping[str, Any], cost: float = 0.0) -> None:
        """Record a paid answer; it survives a power loss when this returns.

        Args:
            prompt_hash: The key to look it up by.
            response: Any JSON object.
            cost: US dollars.

        Raises:
            DiskFull: it is not recorded.
            InvalidMetric: it is not a JSON object, the key is not text, or the cost is not a number of at least 0.
            RunClosed: the tracker was closed or replaced.
        """
        if not isinstance(response, Mapping):
            raise InvalidMetric(f"A response must be a JSON object, got {type(response).__name__}.")
        if not isinstance(prompt_hash, str):
            raise InvalidMetric(f"prompt_hash must be text, got {type(prompt_hash).__name__}.")
        dollars = Decimal(str(as_amount(cost, "cost", unit="US dollars")))
        self._responses.keep(prompt_hash, response, dollars)

    def get_api_response(self, prompt_hash: str) -> dict[str, Any] | None:
        """The answer recorded under a key by this session or an earlier one in this folder; None if there is none.

        Raises:
            RunClosed: the tracker was closed or replaced.
        """
        answer = self._responses.serve(prompt_hash)
        return None if answer is None else answer.response

    def record_connection_failure(self, retry_count: int, error: object) -> None:
        """Record a failed request and its number of retries; API keys in the error are hidden."""
        with self._guard:
            self._writer.keep(
                ConnectionFailed(
                    **self._writer.stamp(),
                    retry_count=self._odd_values.count(retry_count, "retry_count", otherwise=0),
                    error=without_secrets(str(error)),
                )
            )

    def record_job_progress(self, done: int) -> None:
        """Record how many requests of a generation job are completed."""
        with self._guard:
            hours = self._metrics.hours_trained()
            self._writer.keep(JobAdvanced(**self._writer.stamp(), done=as_int(done, "done"), wall_clock_hours=hours))

    def record_spending(self, spending: Spending) -> None:
        """Record the totals that a shared store reports for this run; the run's own store counts by itself."""
        with self._guard:
            self._writer.keep(SpendingReported(**self._writer.stamp(), spending=spending))

    def record_pause(self, duration: float) -> None:
        """Record a deliberate pause of `duration` seconds that ends now; it does not count as training time.

        Raises:
            InvalidMetric: `duration` is negative or not a number.
        """
        seconds = as_amount(duration, "duration", unit="seconds")
        with self._guard:
            self._metrics.record_pause(seconds)

    def phase(self, phase: Phase | str) -> AbstractContextManager[None]:
        """Tell `crashproof run`, if it supervises this process, what the loop does within a context; it waits longer.

        `"saving"`, `"evaluating"`, `"compiling"` and `"waiting"` (for a teacher) are for work during which no step
        is reported. Without a supervisor this does nothing.

        Raises:
            ValueError: there is no such phase.
        """
        return self._supervisor.phase(Phase(phase))

    def get_loss_trend(self, window_size: int = 100) -> dict[str, Any]:
        """The trend of the newest losses, at most 1,000; `LossTrend` has the names.

        The verdict is on all losses of the run, so it is the same for every `window_size`.
        """
        with self._guard.lock:
            session = self._writer.session_as_of_now()
        trend: dict[str, Any] = msgspec.to_builtins(trend_of_session(session, window_size=window_size))
        return trend

    def get_progress_summary(self) -> dict[str, Any]:
        """The fields of `progress.json`, as of now; `ProgressSummary` has the names."""
        summary: dict[str, Any] = msgspec.to_builtins(self._upkeep.summary())
        return summary

    def get_remaining_seconds(self) -> float | None:
        """Training time left at the recent pace, in seconds; None while that is unknown."""
        with self._guard.lock:
            session = self._writer.session
            estimate = estimate_remaining(pace_of(session), session.total_steps_target - session.steps_done)
        return None if estimate is None else estimate.seconds

    def save(self) -> None:
        """Make everything durable now, and write all snapshots.

        Raises:
            DiskFull: something could not be written.
            RunClosed: the tracker was closed or replaced.
            RunInUse: another process writes the run as well.
        """
        if self._heartbeat is None:
            self._upkeep.check_sole_writer()
        with self._guard:
            self._metrics.write_all()
            self._upkeep.check_alerts()
            self._upkeep.finish_writing()

    def close(self, how: AttemptState | str = AttemptState.COMPLETED, error: BaseException | None = None) -> None:
        """End the attempt and close the run; a second call does nothing.

        Args:
            how: `completed`, `preempted` or `raised`.
            error: The exception that ended it, if any.

        Raises:
            StorageError, OSError: the last lines could not be written; with an `error`, the log says so instead.
            RunInUse: another process writes the run as well, and no other call has raised this yet.
        """
        if self._guard.is_open():
            if self._heartbeat is not None:
                self._heartbeat.stop()
            self._upkeep.check_before_closing()
        if self._guard.state is GuardState.INTRUDED and error is None and not self._guard.has_raised:
            self._guard.require_open()
        if not self._guard.is_open():
            return
        with self._guard.removal_lock, self._guard.lock:
            if not self._guard.is_open():
                return
            try:
                self._end_attempt(AttemptState(how), error)
            except (StorageError, OSError) as failure:
                if error is None:
                    raise
                # What ends the training says more than what could not be recorded of its end.
                told = "The end of this attempt could not be recorded, and %s records are lost: %s"
                log.error(told, f"{self._writer.num_queued:,}", failure)  # noqa: TRY400 - one line
            finally:
                self._guard.state = GuardState.CLOSED
                self._supervisor.finish()
                self._alerts.close()
                self._checkpoints.close()
                self._responses.close()
                self._writer.close()
                atexit.unregister(self._close_at_exit)

    def _position(self, step: object, dataset_position: object) -> int:
        at_step = update_at(self.session, as_int(step, "step"))
        otherwise = 0 if at_step is None else at_step.samples_processed
        return self._odd_values.count(dataset_position, "dataset_position", otherwise=otherwise)

    def _end_attempt(self, how: AttemptState, error: BaseException | None) -> None:
        self._metrics.write_all()
        self._upkeep.keep_digests(wait=True)
        self._responses.tell_served()
        self._upkeep.check_alerts()
        self._writer.keep(
            AttemptEnded(
                **self._writer.stamp(),
                how=how,
                error=None if error is None else without_secrets(f"{type(error).__name__}: {error}"),
                wall_clock_hours=self._metrics.hours_trained(),
                since_boot=self._clock.since_boot() if isinstance(self._clock, BootClock) else UNSET,
            )
        )
        # The end is recorded first: if there is no alert about it then, the alert process sends one.
        self._alerts.report_end(error)
        self._upkeep.finish_writing()
        self._responses.save_index()

    def _join_proof(self, config_hash: str) -> JoinedProof | None:
        """Take part in the proof that is under way; None, which is nearly always, if there is none."""
        place = os.environ.get(ENVIRONMENT_VARIABLE)
        if not place:
            return None
        # A run that no proof watches need not import it.
        from crashproof.tracking.witness.joining import join_proof

        return join_proof(place, self._folder, config_hash, disk=self._disk)

    def _start_heartbeat(self) -> Heartbeat | None:
        if not self._settings.has_heartbeat:
            return None
        return Heartbeat(
            self._upkeep.beat, interval_seconds=self._settings.heartbeat_seconds, standstills=self._standstills
        )

    def _stop_at_intrusion(self) -> None:
        """Do nothing more between calls, as the run is left to another writer."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        atexit.unregister(self._close_at_exit)

    def _close_replaced(self) -> None:
        """Close, because another tracker of this process is about to take over the run."""
        self.close(AttemptState.REPLACED)

    def _leave_to_parent(self) -> None:
        """Release what a forked child has copies of; the lock and the heartbeat are the parent's."""
        self._responses.leave_to_parent()
        self._alerts.leave_to_parent()
        self._supervisor.leave()
        self._writer.close_files()

    def _close_at_exit(self) -> None:
        """Close a tracker that was left open when the interpreter exits."""
        error = getattr(sys, "last_value", None)
        self.close(AttemptState.COMPLETED if error is None else AttemptState.RAISED, error)


def _rate(odd_values: OddValues, value: object, name: str) -> float | None:
    if value is None:
        return None
    number = odd_values.number(value, name, recorded="It is measured instead.")
    return None if number is None else as_float(number, name)
