"""What an end was, and what is done about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from signal import Signals

import msgspec

from crashproof.clock import BootClock
from crashproof.records.events import CheckpointSuspected, ProcessEnded
from crashproof.records.session import TrainingSession
from crashproof.records.supervision import Action, EndCause
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.secrets.texts import without_secrets
from crashproof.rules.supervision.ends import EXIT_START_AGAIN, EndFacts, cause_of, exit_code_of_signal
from crashproof.rules.supervision.restarts import Decision, Life, RestartRules, decide
from crashproof.rules.supervision.suspects import is_suspect
from crashproof.supervisor.evidence import OomWatch, line_about
from crashproof.supervisor.lifetime import LifeEnd
from crashproof.supervisor.recording import lost_seconds
from crashproof.supervisor.run_watch import RunWatch
from crashproof.supervisor.state import KnownChild, SupervisorState

__all__ = ["EXIT_ENDED_EARLY", "EXIT_GAVE_UP", "FinishedLife", "exit_code_after", "judge"]

EXIT_GAVE_UP = 3
EXIT_ENDED_EARLY = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedLife:
    """A life that has ended, with all that was seen of it."""

    known: KnownChild
    run: RunWatch
    end: LifeEnd
    oom: OomWatch
    family: Sequence[int]
    """The ids of its processes."""


def judge(
    finished: FinishedLife, state: SupervisorState, rules: RestartRules, clock: BootClock
) -> tuple[ProcessEnded, Decision]:
    """The record of an end; the life is added to those of the state, and a checkpoint that it makes suspect."""
    run, known = finished.run, finished.known
    run.look()
    session, now = run.session(), clock.now()
    since_boot = clock.since_boot() - (now - known.started_at)
    facts = _facts(finished, session, since_boot=since_boot)
    cause, details = cause_of(facts)
    details = without_secrets(details)
    state.lives.append(_life(finished, session, cause, details, now=now))
    _suspect_checkpoint(run, session, state, now=now)
    decision = decide(state.lives, rules)
    if finished.end.stop and decision.action == Action.RESTART:
        decision = Decision(action=Action.STOP, reason="the supervisor was asked to stop")
    if decision.has_given_up:
        _withdraw_suspicions(state, now=now)
    attempt = None if session is None else run.attempt_in(session)
    newest = 0 if session is None else max((each.attempt for each in session.attempts), default=0)
    end = ProcessEnded(
        timestamp=now,
        attempt=newest if attempt is None else attempt.attempt,
        cause=cause,
        details=details,
        started_at=known.started_at,
        exit_code=finished.end.ended.exit_code,
        signal=facts.signal_name,
        step=0 if session is None else session.steps_completed,
        opened_run=attempt is not None,
        action=decision.action,
        reason=decision.reason,
        hung_seconds=finished.end.hung_seconds,
        lost_seconds=0.0 if session is None or attempt is None else lost_seconds(session, attempt),
        notices=finished.end.notices,
        notices_saved=_num_saved(session, finished.end),
        stacks=finished.end.stacks,
    )
    return end, decision


def exit_code_after(end: ProcessEnded, life: LifeEnd, decision: Decision) -> int:
    """The supervisor's own exit code after its last life."""
    if end.action == Action.FINISH:
        return 0
    if decision.has_given_up:
        return EXIT_GAVE_UP
    if life.stop:
        return EXIT_START_AGAIN
    if end.cause == EndCause.ENDED_EARLY:
        return EXIT_ENDED_EARLY
    if life.ended.signal is not None:
        return exit_code_of_signal(life.ended.signal)
    return EXIT_GAVE_UP if life.ended.exit_code is None else life.ended.exit_code


def _facts(finished: FinishedLife, session: TrainingSession | None, *, since_boot: float) -> EndFacts:
    end = finished.end
    attempt = None if session is None else finished.run.attempt_in(session)
    is_unexplained = end.ended.exit_code != 0 and not end.hang and not end.stop
    return EndFacts(
        exit_code=end.ended.exit_code,
        signal=end.ended.signal,
        signal_name=None if end.ended.signal is None else _name_of(end.ended.signal),
        hang=end.hang,
        stop=end.stop,
        oom_kills=finished.oom.kills() if is_unexplained else 0,
        oom_line=line_about(finished.family, since_boot=since_boot) if is_unexplained else "",
        is_complete=None if session is None else session.is_finished,
        attempt_state=None if attempt is None or attempt.end is None else attempt.how,
        error="" if attempt is None else attempt.error or "",
    )


def _life(
    finished: FinishedLife, session: TrainingSession | None, cause: EndCause, details: str, *, now: float
) -> Life:
    run, known = finished.run, finished.known
    attempt = None if session is None else run.attempt_in(session)
    resumed = None if session is None else run.resumed_from(session)
    return Life(
        cause=cause,
        details=details,
        exit_code=finished.end.ended.exit_code,
        step=None if session is None else session.steps_completed,
        verified_before=known.verified_before,
        verified_after=run.verified(),
        seconds=now - known.started_at,
        resumed_from=None if resumed is None else (resumed.checkpoint_path, resumed.created_at),
        made_step=session is None or (attempt is not None and attempt.first_step is not None),
    )


def _suspect_checkpoint(
    run: RunWatch, session: TrainingSession | None, state: SupervisorState, *, now: float
) -> None:
    """Suspect the checkpoint of the newest lives, if there is another one to resume from."""
    newest = state.lives[-1]
    if newest.made_progress:
        state.suspects = []
    if session is None or not is_suspect(state.lives, num_suspects=len(state.suspects)):
        return
    catalog, checkpoint = CheckpointCatalog(session), run.resumed_from(session)
    others = [each for each in catalog.all() if each != checkpoint and not catalog.suspicion_of(each)]
    if checkpoint is None or not others:
        return
    found = CheckpointSuspected(
        timestamp=now,
        attempt=max((each.attempt for each in session.attempts), default=0),
        step=checkpoint.checkpoint_step,
        checkpoint_path=checkpoint.checkpoint_path,
        created_at=checkpoint.created_at,
        reason=f"two resumes from it died before their first step ({newest.details})",
        is_suspect=True,
    )
    state.suspects.append(found)
    state.unrecorded.append(found)
    state.lives[-1] = dataclasses.replace(newest, is_new_trial=True)


def _withdraw_suspicions(state: SupervisorState, *, now: float) -> None:
    """It was not the checkpoints: resumes from others died as well."""
    state.unrecorded += [msgspec.structs.replace(each, timestamp=now, is_suspect=False) for each in state.suspects]
    state.suspects = []


def _num_saved(session: TrainingSession | None, life: LifeEnd) -> int:
    """How many of the requests to stop led to a checkpoint: one save answers all of them."""
    newest = None if session is None else CheckpointCatalog(session).newest()
    if newest is None or life.stop_at is None:
        return 0
    return int(newest.created_at >= life.stop_at)


def _name_of(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"
