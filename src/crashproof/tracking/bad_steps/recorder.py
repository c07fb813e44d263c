"""Judge a training loop's steps by their journalled losses."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from crashproof.records.bad_steps import DataWindow
from crashproof.records.events import BadStepFound, BadStepPassed, DataLeftOut
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import TrainingSession
from crashproof.records.states import BadStepAction
from crashproof.rules.bad_steps.finding import BadStepFinding, judge_step
from crashproof.rules.bad_steps.reaction import healthy_losses
from crashproof.rules.bad_steps.usual_losses import UsualLosses
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.tracking.bad_steps.verdict import StepVerdict
from crashproof.tracking.run_writer import RunWriter

__all__ = ["BadStepRecorder"]

log = logging.getLogger("crashproof")


class BadStepRecorder:
    """Judges the updates of this attempt, and journals bad steps. Not thread-safe: its owner locks."""

    def __init__(self, writer: RunWriter) -> None:
        self._writer = writer
        self._usual: UsualLosses | None = None
        """None before the first verdict."""
        self._judged_step = -1
        self._rewinds = 0
        """Of the attempt, when the last update was judged."""

    def check(self) -> StepVerdict:
        """The verdict on the updates since the last call: on the first bad one, if there is one."""
        session, step = self._writer.session, None
        usual = self._usual if self._rewinds == self._writer.rewinds else None
        if usual is None:
            own = [each.first_step for each in session.timelines if each.attempt == self._writer.attempt]
            usual = self.begin_after((own[-1] if own else session.steps_completed + 1) - 1)
        for before, update in self._unjudged(session):
            step = self._judged_step = update.step
            data = [] if before is None else [DataWindow(before.samples_processed, update.samples_processed)]
            finding = None if update.without_loss else judge_step(update.step, update.loss, data, usual)
            if finding is not None:
                return self._report(finding, session)
        return StepVerdict(step=step)

    def begin_after(self, step: int) -> UsualLosses:
        """Judge the next updates by the healthy losses up to a step: training takes up, or goes back, there."""
        session = self._writer.session
        self._judged_step, self._rewinds = step, self._writer.rewinds
        self._usual = UsualLosses(healthy_losses(session, up_to_step=step))
        return self._usual

    def record(self, finding: BadStepFinding, action: BadStepAction) -> None:
        """Journal a bad step, and what is done about it; durable when this returns.

        Raises:
            StorageError, OSError: it is not recorded.
        """
        limit = finding.limit
        event = BadStepFound(
            **self._writer.stamp(),
            step=finding.step,
            cause=finding.cause,
            loss=finding.finite_loss,
            usual=None if limit is None else limit.usual,
            limit=None if limit is None else limit.loss,
            num_losses=0 if limit is None else limit.num_losses,
            data=list(finding.data),
            action=action,
        )
        self._writer.keep_durably(event)

    def record_passed(self, step: int, loss: float) -> None:
        """Journal that a bad step was fine when it was computed again."""
        self._writer.keep(BadStepPassed(**self._writer.stamp(), step=step, loss=loss))

    def leave_out(self, data: Sequence[DataWindow], step: int) -> None:
        """Journal that samples are left out of the run from now on; durable when this returns.

        Raises:
            StorageError, OSError: they are not left out.
        """
        self._writer.keep_durably(DataLeftOut(**self._writer.stamp(), step=step, data=list(data)))

    def _unjudged(self, session: TrainingSession) -> list[tuple[MetricsSnapshot | None, MetricsSnapshot]]:
        """The updates since the last call, each with the one before it."""
        history = session.metrics_history
        start = len(history)
        while start and history[start - 1].step > self._judged_step:
            start -= 1
        return [(history[place - 1] if place else None, history[place]) for place in range(start, len(history))]

    def _report(self, finding: BadStepFinding, session: TrainingSession) -> StepVerdict:
        self.record(finding, BadStepAction.REPORTED)
        log.warning("Bad step: %s", finding.evidence)
        newest = next(iter(CheckpointCatalog(session).to_go_back_to(finding.step)), None)
        return StepVerdict(step=finding.step, finding=finding, checkpoint=newest)
