"""Prove that a command resumes exactly."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from crashproof.errors import ConfigError
from crashproof.proof.certifying import CertificateDraft, problem_of_finding, problem_of_reason
from crashproof.proof.contents import contents_of
from crashproof.proof.gathering import SeenRun
from crashproof.proof.refusals import NotProvable, Reason, require_usable_control
from crashproof.proof.scratch import Scratch
from crashproof.proof.starting import Start, start_command
from crashproof.records.proof.assignment import Assignment, Stop
from crashproof.records.proof.certificate import Certificate, KillDone
from crashproof.records.proof.witness import RunOpened, Seen, WitnessLine
from crashproof.rules.proof.causes import Cause
from crashproof.rules.proof.comparison import by_step
from crashproof.rules.proof.data_stream import DataStream
from crashproof.rules.proof.kill_plan import plan_kills, steps_to_digest
from crashproof.rules.proof.observations import Life
from crashproof.rules.proof.verdict import (
    Contents,
    Finding,
    Verdict,
    judge_checkpoints,
    judge_control,
    judge_lives,
    passed_over,
)

__all__ = ["PLACEHOLDER", "prove_command"]

PLACEHOLDER = "{output_dir}"
_START_AGAIN = 75
_MOST_STARTS_BY_ITSELF = 20
_LIMIT_IN_CONTROLS = 3.0
_MOST_CHECKPOINTS = 4


def prove_command(
    command: Sequence[str],
    scratch: Scratch,
    *,
    num_kills: int,
    say: Callable[[str], None],
    least_limit_seconds: float = 60.0,
) -> Certificate:
    """Train a command's run uninterrupted twice, then with kills, and compare.

    Args:
        command: Some of its words hold `{output_dir}`.
        scratch: Where it trains; whatever the command writes elsewhere is its own.
        num_kills: How often to kill it, at least once.
        say: Told what is going on, a line at a time.
        least_limit_seconds: What a start behind a kill may take at least; three uninterrupted runs are another limit.

    Raises:
        ConfigError: no word of the command holds `{output_dir}`.
        OSError: there is no such program.
    """
    if not any(PLACEHOLDER in word for word in command):
        raise ConfigError(
            f"The command has no {PLACEHOLDER}, so it cannot be told where to train.",
            hint=f"Write {PLACEHOLDER} where it takes its output folder.",
        )
    return _Proof(command, scratch, num_kills, say, least_limit_seconds).run()


class _Proof:
    """One proof, from its first start to the certificate."""

    def __init__(
        self,
        command: Sequence[str],
        scratch: Scratch,
        num_kills: int,
        say: Callable[[str], None],
        least_limit_seconds: float,
    ) -> None:
        self._scratch = scratch
        self._command = [word.replace(PLACEHOLDER, str(scratch.output_dir)) for word in command]
        self._num_kills = num_kills
        self._say = say
        self._draft = CertificateDraft(command)
        self._full_steps: list[int] | None = None
        self._least_limit_seconds = least_limit_seconds
        self._limit_seconds: float | None = None
        """Of each start behind the first."""

    def run(self) -> Certificate:
        """Prove; what cannot be proved is a certificate too."""
        try:
            return self._compare()
        except NotProvable as refused:
            problem = problem_of_reason(refused.reason)
            return self._draft.finish(Verdict.NOT_PROVABLE, problem, refused.reason.output_tail)
        except _DoesNotStartAgain as failed:
            resume = len(self._draft.kills)
            problem = problem_of_reason(Cause.DOES_NOT_START_AGAIN, resume=resume, detail=failed.how)
            return self._draft.finish(Verdict.NOT_EXACT, problem, failed.start.output_tail)

    def _compare(self) -> Certificate:
        first_run, first = self._control(1)
        steps, saves = [each.step for each in first.steps], first_run.save_steps()
        self._draft.control = by_step([first])
        self._draft.checkpoints = first_run.checkpoint_digests()
        self._draft.notes += [f"{name} cannot be compared: {kind}." for name, kind in first_run.unreadable().items()]
        self._plan_digests(first_run, steps, saves)
        second_run, second = self._control(2)
        finding = judge_control(first, second)
        if finding is not None:
            return self._draft.finish(finding.verdict, problem_of_finding(finding))
        kills = plan_kills(steps, saves, DataStream.of(first.steps), self._num_kills)
        if not kills:
            raise NotProvable(_NO_CHECKPOINT)
        ignored = self._draft.passed_over = passed_over(first, second)
        resumed = self._killed_run(kills)
        if resumed.was_archived:
            return self._draft.finish(Verdict.NOT_EXACT, problem_of_reason(Cause.CONFIG_CHANGES, resume=1))
        lives = resumed.lives()
        finding = judge_lives(lives, second, resumed.saved_before_lives(), ignored)
        finding = finding or _judge_contents(first_run, second_run, resumed)
        verdict = Verdict.EXACT if finding is None else finding.verdict
        return self._draft.finish(verdict, None if finding is None else problem_of_finding(finding))

    def _control(self, number: int) -> tuple[SeenRun, Life]:
        """Train a run to its end, uninterrupted."""
        self._say(f"Training uninterrupted, {number} of 2.")
        self._scratch.begin_run()
        start = self._start(f"control-{number}", stop=None)
        require_usable_control(start, earlier_ended_well=number > 1)
        if number == 1:
            self._limit_seconds = max(self._least_limit_seconds, _LIMIT_IN_CONTROLS * start.seconds)
        run = self._keep_run(f"control-{number}", [start.lines])
        lives = run.lives()
        if len(lives) != 1:
            raise NotProvable(_SEVERAL_ATTEMPTS)
        self._say(f"  step {lives[0].steps[-1].step:,} after {start.seconds:.1f} s.")
        return run, lives[0]

    def _plan_digests(self, run: SeenRun, steps: Sequence[int], saves: Sequence[int]) -> None:
        """Have the next starts digest what the first one could in a reasonable time."""
        full = run.full_steps()
        if full >= {*steps}:
            self._full_steps = list(steps)
        elif full:
            self._full_steps = steps_to_digest(steps, saves, most=len(full))
            self._draft.notes.append(
                f"Weights and states take long to digest: they are compared at {len(self._full_steps):,} "
                f"of {len(steps):,} steps."
            )

    def _killed_run(self, kills: Sequence[Stop]) -> SeenRun:
        """Train a run that is killed as planned, and started again each time."""
        self._scratch.begin_run()
        lines: list[Sequence[WitnessLine]] = []
        waiting: list[Stop | None] = [*kills, None]
        num_again, has_failed = 0, False
        while True:
            start = self._start(f"killed-{len(lines) + 1}", stop=waiting[0])
            lines.append(start.lines)
            self._note_resume(start)
            if start.was_killed and waiting[0] is not None:
                self._note_kill(start, waiting[0])
                waiting.pop(0)
                has_failed = False
            elif start.was_too_slow:
                raise _DoesNotStartAgain(start, f"It did not end within {self._limit_seconds:.0f} s.")
            elif not start.return_code:
                break
            elif start.return_code == _START_AGAIN and num_again < _MOST_STARTS_BY_ITSELF:
                num_again += 1
            elif has_failed:
                raise _DoesNotStartAgain(start, f"It ended with exit code {start.return_code}, twice.")
            else:
                has_failed = True
                self._draft.notes.append(
                    f"{start.name} ended with exit code {start.return_code}; it was tried again."
                )
        self._note_unreached(waiting)
        return self._keep_run("killed", lines)

    def _start(self, name: str, *, stop: Stop | None) -> Start:
        assignment = Assignment(
            output_dir=str(self._scratch.output_dir), prover=os.getpid(), stop=stop, full_steps=self._full_steps
        )
        place = self._scratch.next_start(name)
        start = start_command(self._command, place, assignment, limit_seconds=self._limit_seconds)
        self._draft.seconds[place.name] = round(start.seconds, 3)
        return start

    def _keep_run(self, name: str, lines: Sequence[Sequence[WitnessLine]]) -> SeenRun:
        opened = next(each for of_start in lines for each in of_start if isinstance(each, RunOpened))
        inside = Path(opened.progress).resolve().relative_to(self._scratch.output_dir)
        return SeenRun(self._scratch.keep_run(name) / inside, lines)

    def _note_kill(self, start: Start, stop: Stop) -> None:
        moment = stop.moment.replace("_", " ")
        self._say(f"Killed after step {start.last_step:,} ({moment}); starting again.")
        self._draft.kills.append(KillDone(moment=stop.moment, after_step=start.last_step, resumed_at_step=None))

    def _note_resume(self, start: Start) -> None:
        """Complete the newest kill by where the start behind it went on."""
        steps = [each.step for each in start.lines if isinstance(each, Seen)]
        if self._draft.kills and steps and self._draft.kills[-1].resumed_at_step is None:
            kill = self._draft.kills[-1]
            self._draft.kills[-1] = KillDone(
                moment=kill.moment, after_step=kill.after_step, resumed_at_step=min(steps)
            )

    def _note_unreached(self, waiting: Sequence[Stop | None]) -> None:
        missed = [each.moment.replace("_", " ") for each in waiting if each is not None]
        if missed:
            self._draft.notes.append(f"The run ended before it was killed so often; left out: {', '.join(missed)}.")


class _DoesNotStartAgain(Exception):
    """A start behind a kill fails."""

    def __init__(self, start: Start, how: str) -> None:
        super().__init__(how)
        self.start = start
        self.how = how


_NO_CHECKPOINT = Reason(
    cause="no_checkpoint",
    sentence="the command records no checkpoint before its last step, so there is nothing to resume from",
    to_do="Call record_checkpoint after each save, or save more often.",
)
_SEVERAL_ATTEMPTS = Reason(
    cause="several_attempts",
    sentence="the command opens its run several times in one start",
    to_do="Prove a command that trains one run.",
)


def _judge_contents(first: SeenRun, second: SeenRun, resumed: SeenRun) -> Finding | None:
    """Compare the newest checkpoints that all three runs still have."""
    paths = [run.checkpoints() for run in (first, second, resumed)]
    steps = sorted(set.intersection(*(set(each) for each in paths)))[-_MOST_CHECKPOINTS:]
    contents: list[Contents] = [{step: contents_of(of_run[step]) for step in steps} for of_run in paths]
    return judge_checkpoints(*contents)
