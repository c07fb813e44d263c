"""One life of the command, from its start to its end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from crashproof.clock import Clock
from crashproof.disk.supervision.stacks import keep_stacks
from crashproof.errors import StorageError
from crashproof.formatting import as_duration
from crashproof.records.supervision import Phase
from crashproof.rules.secrets.texts import without_secrets
from crashproof.rules.supervision.notices import fits_a_save
from crashproof.rules.supervision.progress_limits import AUTO_SECONDS, ProgressLimits, Waiting
from crashproof.supervisor.child import Child, Ended
from crashproof.supervisor.evidence import OomWatch
from crashproof.supervisor.metadata import MetadataPoller
from crashproof.supervisor.processes import catches, is_stopped
from crashproof.supervisor.run_watch import Look, RunWatch
from crashproof.supervisor.signals import ReceivedSignals
from crashproof.supervisor.stacks import collect_stacks

__all__ = ["LifeEnd", "Lifetime"]

_POLL_SECONDS = 0.2
_LONGEST_GAP_SECONDS = 2.0
"""Between two looks; if there was more, this process stood still as well, as on a suspended machine."""
_FAMILY_SECONDS = 2.0
_RECORD_SECONDS = 1.0
"""Of the time that a notice leaves, for the supervisor to record what happened."""
_SHORT_SECONDS = 5.0
"""What a second request to stop leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LifeEnd:
    """How a life ended, and what the supervisor had to do with it."""

    ended: Ended
    hang: str = ""
    """How long it hung, and in which phase."""
    hung_seconds: float = 0.0
    stacks: str | None = None
    """Path of its stacks, as records spell it."""
    stop: str = ""
    """What asked the supervisor to stop."""
    stop_at: float | None = None
    """When, in seconds since 1970."""
    notices: int = 0


@dataclass(slots=True, kw_only=True)
class _Stopping:
    """The end that the supervisor has asked for."""

    deadline: float | None
    """By the steady clock, for SIGKILL; None: a person has asked, and may ask again."""


class Lifetime:
    """Watches a child until it has ended, with all that it started."""

    def __init__(
        self,
        child: Child,
        run: RunWatch,
        signals: ReceivedSignals,
        *,
        progress_limits: ProgressLimits,
        grace_seconds: float,
        oom: OomWatch,
        notices: MetadataPoller | None,
        clock: Clock,
        say: Callable[[str], None],
    ) -> None:
        self._notice_poller = notices
        self._child, self._run, self._signals = child, run, signals
        self._progress_limits, self._grace_seconds = progress_limits, grace_seconds
        self._oom, self._clock, self._say = oom, clock, say
        self._waiting = Waiting()
        self._progress: Hashable = None
        self._files: Hashable = None
        self._looked_at = clock.steady()
        self._family_at = -_FAMILY_SECONDS
        self._family = [child.pid]
        self._is_stopped = False
        self._stopping: _Stopping | None = None
        self._hang, self._hung_seconds, self._hung_since = "", 0.0, 0.0
        self._stacks: str | None = None
        self._stop, self._stop_at, self._notices = "", 0.0, 0
        self._saves: list[float] = []
        """How long each save has taken that the loop has told of."""
        self._saving_since: float | None = None

    @property
    def family(self) -> list[int]:
        """The ids of the processes that were seen last."""
        return self._family

    def until_end(self) -> LifeEnd:
        """Watch until the process has ended, and nothing is left of it."""
        while (ended := self._child.poll()) is None:
            self._signals.wait(_POLL_SECONDS)
            self._take_signals()
            self._take_notice()
            self._look_at_family()
            self._look_at_run()
            self._enforce()
        self._child.end_orphans()
        if self._hang:
            self._hung_seconds += self._clock.steady() - self._hung_since
        return LifeEnd(
            ended=ended,
            hang=self._hang,
            hung_seconds=self._hung_seconds,
            stacks=self._stacks,
            stop=self._stop,
            stop_at=self._stop_at if self._stop else None,
            notices=self._notices,
        )

    def _take_signals(self) -> None:
        while (received := self._signals.take()) is not None:
            self._notices += 1
            if self._stop:
                self._shorten(received)
                continue
            is_person = received == signal.SIGINT
            self._ask_to_stop(
                f"the supervisor received {received.name}",
                seconds_left=None if is_person else self._grace_seconds,
                number=received,
            )

    def _take_notice(self) -> None:
        found = None if self._notice_poller is None else self._notice_poller.take()
        if found is None:
            return
        self._notices += 1
        seconds_left = max(0.0, found.seconds_left - _RECORD_SECONDS)
        if self._stop:
            self._set_deadline(seconds_left)
            return
        self._ask_to_stop(found.what, seconds_left=seconds_left, number=signal.SIGTERM)

    def _ask_to_stop(self, why: str, *, seconds_left: float | None, number: signal.Signals) -> None:
        """Ask the command to save and end within a time; if a save would not fit, end it as it is."""
        self._stop, self._stop_at = why, self._clock.now()
        save_seconds = max([*self._saves, *self._run.save_seconds()], default=None)
        if not fits_a_save(seconds_left, save_seconds):
            left, takes = as_duration(seconds_left), as_duration(save_seconds)
            self._say(
                f"{why}; {left} left, and a save takes {takes}, so none is begun: "
                f"{self._run.newest_checkpoint_in_words()} is what a restart resumes from."
            )
            self._child.kill_all()
            self._set_deadline(_SHORT_SECONDS)
            return
        limit = "" if seconds_left is None else f" within {as_duration(seconds_left)}"
        self._say(f"{why}; the command is asked to save and exit{limit}.")
        self._set_deadline(seconds_left)
        self._forward(number)

    def _shorten(self, received: signal.Signals) -> None:
        """A second request leaves less time."""
        self._say(f"received {received.name} again; SIGKILL follows in {_SHORT_SECONDS:g} s.")
        self._set_deadline(_SHORT_SECONDS)
        self._forward(received)

    def _set_deadline(self, seconds_left: float | None) -> None:
        deadline = None if seconds_left is None else self._clock.steady() + seconds_left
        known = None if self._stopping is None else self._stopping.deadline
        if deadline is not None and known is not None:
            deadline = min(deadline, known)
        self._stopping = _Stopping(deadline=deadline)

    def _forward(self, number: signal.Signals) -> None:
        """Send a request to stop to whoever handles it: the command, or below a shell the process of the run."""
        pids = [self._child.pid]
        if self._run.opened is not None and self._run.opened.pid in self._family:
            pids.append(self._run.opened.pid)
        for wanted in (number, signal.SIGTERM):
            handler = next((pid for pid in pids if catches(pid, wanted)), None)
            if handler is not None:
                self._child.send(wanted, to=handler)
                break
        else:
            self._child.send(signal.SIGTERM)
        # A stopped process handles no signal.
        for pid in pids:
            if is_stopped(pid):
                self._child.send(signal.SIGCONT, to=pid)

    def _look_at_family(self) -> None:
        now = self._clock.steady()
        if now - self._family_at >= _FAMILY_SECONDS:
            self._family_at = now
            self._family = self._child.note_family()
            self._oom.note(self._family)

    def _look_at_run(self) -> None:
        """Count how long the run has made no progress, while it could."""
        now = self._clock.steady()
        passed, self._looked_at = min(now - self._looked_at, _LONGEST_GAP_SECONDS), now
        look = self._run.look()
        self._time_saves(look, now)
        if look.phase is None or self._stopping is not None:
            return
        if not self._stands_still():
            self._waiting.pass_time(passed)
        self._take_progress(look)
        limit = self._progress_limits.seconds(self._waiting.phase, self._waiting.own_intervals)
        counted = self._waiting.counted_seconds
        if counted > limit and not self._is_writing(limit):
            self._end_hang(limit)
        elif counted > limit / 2 and self._files is None:
            self._files = self._run.files()

    def _time_saves(self, look: Look, now: float) -> None:
        if look.phase == Phase.SAVING:
            self._saving_since = now if self._saving_since is None else self._saving_since
        elif self._saving_since is not None:
            self._saves.append(now - self._saving_since)
            self._saving_since = None

    def _take_progress(self, look: Look) -> None:
        assert look.phase is not None
        if look.progress != self._progress:
            self._progress, self._files = look.progress, None
            self._waiting.progress()
        self._waiting.enter(look.phase)

    def _is_writing(self, limit: float) -> bool:
        """Whether files of the run have changed in the second half of the time: a loop may save without saying so."""
        known, self._files = self._files, self._run.files()
        if self._files == known or self._waiting.seconds > max(limit, AUTO_SECONDS[Phase.SAVING]):
            return False
        self._waiting.excuse(limit / 2)
        return True

    def _stands_still(self) -> bool:
        pids = [self._child.pid, *([] if self._run.opened is None else [self._run.opened.pid])]
        is_stopped_now = any(map(is_stopped, pids))
        if is_stopped_now != self._is_stopped:
            self._is_stopped = is_stopped_now
            self._say(
                "the process is stopped (SIGSTOP or a debugger), which is no hang; waiting for SIGCONT."
                if is_stopped_now
                else "the process runs again."
            )
        return is_stopped_now

    def _end_hang(self, limit: float) -> None:
        phase, seconds = self._waiting.phase, self._waiting.seconds
        self._hang = f"no progress for {as_duration(seconds)} while {phase}; the limit is {as_duration(limit)}"
        self._hung_seconds, self._hung_since = seconds, self._clock.steady()
        self._family = self._child.note_family()
        self._stacks = self._keep_stacks(collect_stacks(self._family, self._run.opened))
        kept = "" if self._stacks is None else f" Its stacks are in {self._stacks}."
        self._say(f"the command hangs: {self._hang}.{kept} It is ended and restarted.")
        self._set_deadline(self._grace_seconds)
        self._forward(signal.SIGTERM)

    def _keep_stacks(self, text: str) -> str | None:
        folder = self._run.folder
        if folder is None:
            self._say(f"stacks of the command:\n{text}")
            return None
        attempt = 0 if self._run.opened is None else self._run.opened.attempt
        try:
            return folder.recorded_path(keep_stacks(folder, attempt, without_secrets(text)))
        except (StorageError, OSError) as error:
            self._say(f"the stacks cannot be kept ({error}):\n{text}")
            return None

    def _enforce(self) -> None:
        """SIGKILL for everything once the time is over."""
        deadline = None if self._stopping is None else self._stopping.deadline
        if deadline is not None and self._clock.steady() >= deadline:
            self._say("the command has not ended in time: SIGKILL for all of its processes.")
            self._child.kill_all()
            self._stopping = _Stopping(deadline=self._clock.steady() + _SHORT_SECONDS)
