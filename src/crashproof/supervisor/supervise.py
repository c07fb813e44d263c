"""Run a command until it has ended well."""

from __future__ import annotations

import os
import random
import shlex
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from crashproof.clock import BootClock
from crashproof.disk.lock import holder_of
from crashproof.disk.run_folder import RunFolder
from crashproof.disk.supervision.private_folder import PrivateFolder
from crashproof.errors import CommandNotStarted, CrashproofError
from crashproof.formatting import as_duration
from crashproof.records.events import CheckpointSuspected, ProcessEnded
from crashproof.records.supervision import Action, OpenedRun
from crashproof.rules.supervision.ends import EXIT_START_AGAIN
from crashproof.rules.supervision.restarts import lives_in_vain
from crashproof.supervisor.alerting import SupervisorAlerts
from crashproof.supervisor.child import Child, Ended
from crashproof.supervisor.evidence import OomWatch
from crashproof.supervisor.judgement import FinishedLife, exit_code_after, judge
from crashproof.supervisor.lifetime import LifeEnd, Lifetime
from crashproof.supervisor.metadata import MetadataPoller
from crashproof.supervisor.processes import has_open, status_of
from crashproof.supervisor.recording import record_ends
from crashproof.supervisor.run_watch import RunWatch
from crashproof.supervisor.settings import SupervisorSettings
from crashproof.supervisor.signals import ReceivedSignals
from crashproof.supervisor.state import KnownChild, SupervisorState, load_state, save_state
from crashproof.tracking.supervised.link import FOLDER_VARIABLE, RUN_FILE

__all__ = ["Outcome", "Supervisor"]

_LAST_ALERTS_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the supervisor ends."""

    exit_code: int
    reason: str
    ends: list[ProcessEnded]
    """Of each life, in order."""

    @property
    def num_restarts(self) -> int:
        """Lives that were followed by another one."""
        return sum(each.action == Action.RESTART for each in self.ends)


class Supervisor:
    """Starts the command, and starts it again for as long as its rules allow."""

    def __init__(
        self,
        settings: SupervisorSettings,
        private: PrivateFolder,
        signals: ReceivedSignals,
        *,
        environment: Mapping[str, str],
        clock: BootClock,
        say: Callable[[str], None],
        notices: MetadataPoller | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._settings, self._private, self._signals = settings, private, signals
        self._environment = {**environment, FOLDER_VARIABLE: str(private.path)}
        self._clock, self._say, self._draw, self._notices = clock, say, draw, notices
        self._folder = None if settings.run is None else RunFolder.under(settings.run)
        self._alerts = SupervisorAlerts(settings.alerts, command=shlex.join(settings.command))
        self._state = SupervisorState(boot_id=clock.boot_id(), pid=os.getpid())
        self._ends: list[ProcessEnded] = []
        self._child: Child | None = None

    def run(self) -> Outcome:
        """Supervise until the command has ended well, may not be restarted, or was asked to stop.

        Raises:
            CommandNotStarted: it cannot be run at all.
        """
        known = self._take_over()
        while True:
            finished = self._live(known)
            known = None
            end, decision = judge(finished, self._state, self._settings.rules, self._clock)
            self._folder = finished.run.folder
            self._conclude(end)
            if end.action != Action.RESTART:
                return self._finish(end, exit_code_after(end, finished.end, decision))
            if not self._back_off(end):
                return self._finish(end, EXIT_START_AGAIN)

    def _take_over(self) -> KnownChild | None:
        """Go on where a killed supervisor of this command was; return the child that it has left."""
        left = load_state(self._private, self._state.boot_id)
        if left is None:
            self._private.clear()
            return self._take_over_writer()
        self._say(f"supervisor {left.pid} of this command has ended without its command; going on in its place.")
        self._state = left
        left.pid = os.getpid()
        if self._folder is None and left.progress is not None:
            self._folder = RunFolder(Path(left.progress))
        return left.child

    def _take_over_writer(self) -> KnownChild | None:
        """The live process that writes the run that was named: starting a second one would be an error."""
        folder = self._folder
        holder = None if folder is None else holder_of(folder.lock)
        if folder is None or holder is None or holder.host != socket.gethostname():
            return None
        status, run = status_of(holder.pid), RunWatch(self._private.path, run=folder, files=())
        session = run.session()
        if status is None or session is None or not has_open(holder.pid, folder.lock):
            return None
        attempt = max((each.attempt for each in session.attempts), default=0)
        opened = OpenedRun(pid=holder.pid, progress=str(folder.progress), attempt=attempt)
        self._private.write(RUN_FILE, msgspec.json.encode(opened))
        return KnownChild(
            pid=holder.pid,
            start_ticks=status.start_ticks,
            started_at=holder.since,
            verified_before=run.verified(),
        )

    def _live(self, known: KnownChild | None) -> FinishedLife:
        """One life: a new one, or the rest of that of a child that was found."""
        run = RunWatch(self._private.path, run=self._folder, files=self._settings.watch_files)
        if known is None:
            self._private.clear(keep=frozenset({"state.json"}))
            verified = run.verified()
            child = self._start()
            known = KnownChild(
                pid=child.pid,
                start_ticks=child.start_ticks,
                started_at=self._clock.now(),
                verified_before=verified,
            )
        else:
            run.look()
            found = Child.find(known.pid, known.start_ticks)
            self._say(f"process {known.pid} has ended." if found is None else f"process {known.pid} is still there.")
            if found is None:
                life = LifeEnd(ended=Ended(exit_code=None, signal=None))
                return FinishedLife(known=known, run=run, end=life, oom=OomWatch(), family=[known.pid])
            child = found
        self._child, self._state.child = child, known
        self._save_state()
        oom = OomWatch()
        lifetime = Lifetime(
            child,
            run,
            self._signals,
            progress_limits=self._settings.progress_limits,
            grace_seconds=self._settings.grace_seconds,
            oom=oom,
            notices=self._notices,
            clock=self._clock,
            say=self._say,
        )
        life = lifetime.until_end()
        return FinishedLife(known=known, run=run, end=life, oom=oom, family=lifetime.family)

    def _start(self) -> Child:
        try:
            return Child.start(self._settings.command, self._environment)
        except OSError as error:
            raise CommandNotStarted(self._settings.command[0], reason=error.strerror or str(error)) from error

    def _conclude(self, end: ProcessEnded) -> None:
        """Record an end, in the run and for the supervisor that may come after this one."""
        self._ends.append(end)
        state = self._state
        state.child = None
        for each in state.unrecorded:
            if isinstance(each, CheckpointSuspected):
                self._say(_suspicion_in_words(each))
        state.unrecorded.append(end)
        self._save_state()
        if self._folder is not None and self._folder.holds_a_run:
            try:
                record_ends(self._folder, state.unrecorded, clock=self._clock)
            except (CrashproofError, OSError) as error:
                self._say(
                    f"the end cannot be recorded in {self._folder.root} now; tried again after the next: {error}"
                )
            else:
                state.unrecorded = []
                self._save_state()
        session = None if self._folder is None else RunWatch(self._private.path, run=self._folder, files=()).session()
        self._alerts.tell(end, self._folder, session)

    def _back_off(self, end: ProcessEnded) -> bool:
        """Wait before a restart; return whether nobody has asked to stop meanwhile."""
        in_vain = len(lives_in_vain(self._state.lives))
        seconds = self._settings.backoff.seconds(in_vain, draw=self._draw())
        words = end.cause.replace("_", " ")
        self._say(f"{words}: {end.details}. Restarting in {as_duration(seconds)} ({end.reason}).")
        deadline = self._clock.steady() + seconds
        while (left := deadline - self._clock.steady()) > 0:
            self._signals.wait(left)
            received = self._signals.take()
            if received is not None:
                self._say(f"received {received.name} between two lives; nothing is running.")
                return False
        return True

    def _finish(self, end: ProcessEnded, code: int) -> Outcome:
        self._alerts.close()
        self._private.clear()
        if self._child is not None:
            self._child.wait_for_alerts(_LAST_ALERTS_SECONDS)
        words = end.cause.replace("_", " ")
        if end.action != Action.FINISH:
            self._say(f"{words}: {end.details}. Not restarted: {end.reason}.")
        return Outcome(exit_code=code, reason=end.reason, ends=self._ends)

    def _save_state(self) -> None:
        self._state.progress = None if self._folder is None else str(self._folder.progress)
        problem = save_state(self._private, self._state)
        if problem:
            self._say(f"a supervisor that follows a killed one would not find this command: {problem}")


def _suspicion_in_words(event: CheckpointSuspected) -> str:
    if event.is_suspect:
        return f"{event.checkpoint_path} is suspect and passed over: {event.reason}."
    return f"{event.checkpoint_path} is not suspect any more: resumes from older checkpoints died as well."
