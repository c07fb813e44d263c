"""Find bad steps, and act on them on all ranks together.

Every rank knows the loss of all ranks, so each judges by itself, always when the next step is queued already: no
device is waited for that has nothing else to do. That a step is bad travels with the request to stop; what is done
about it the main rank decides, and all do it after the same step.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from crashproof.distillation.training.training_state import TrainingState
from crashproof.errors import BadStep
from crashproof.pytorch.coordination.acting_together import act_together
from crashproof.pytorch.ranks import Ranks
from crashproof.records.bad_steps import DataWindow
from crashproof.records.states import BadStepAction, OnBadStep
from crashproof.rules.bad_steps.finding import BadStepFinding, data_in_words, judge_step
from crashproof.rules.bad_steps.reaction import choose_action, healthy_losses, seen_before
from crashproof.rules.bad_steps.usual_losses import UsualLosses
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.scalars import PendingScalar, as_float, is_on_device, start_copy
from crashproof.tracking.bad_steps.verdict import bad_step_error
from crashproof.tracking.context import TrainingProgressContext

__all__ = ["BadStepGuard", "GoBack", "StepGuard"]

log = logging.getLogger("crashproof")

_STOP_HINT = (
    "Start the same command with train.on_bad_step=rollback to leave these samples out if they are bad again, or "
    "with skip to leave the weights as they are at such steps; or look at the data, or lower train.learning_rate."
)
_TOO_MANY_HINT = (
    "Look at the samples and at the learning rate: `crashproof status` lists what was found. A larger "
    "train.max_bad_steps goes on with the same command."
)


class GoBack(Exception):
    """Training goes back to a checkpoint before a step; raised on all ranks after the same step."""

    def __init__(self, finding: BadStepFinding) -> None:
        super().__init__(finding.evidence)
        self.finding = finding


class StepGuard:
    """Does nothing about bad steps, as by default."""

    needs_checkpoint = False
    """Whether there has to be a checkpoint before the first step."""
    sees_bad_step = False
    """Whether this rank knows a bad step that is not acted on yet."""

    def begin(self) -> None:
        """Take up where the restored state stands; every rank calls it."""

    def is_bad(self, step: int, loss: Tensor) -> Tensor | None:
        """1.0 on the device where a step must not change the weights; None if no step is skipped."""
        return None

    def add(self, step: int, loss: Tensor, data: Sequence[DataWindow]) -> None:
        """Note a step that is queued or done, and its samples."""

    def judge(self, up_to_step: int) -> None:
        """Judge the steps up to one, and wait for their losses."""

    def act(self) -> None:
        """Act on the bad steps that any rank knows; every rank calls it after the same step."""

    def settle(self, step: int) -> None:
        """Judge all steps up to the newest, and act: the state is about to be saved. Every rank calls it."""


class BadStepGuard(StepGuard):
    """Judges each step, and stops, skips or goes back."""

    def __init__(
        self,
        policy: OnBadStep,
        most: int,
        *,
        state: TrainingState,
        ranks: Ranks,
        context: TrainingProgressContext,
    ) -> None:
        """`most` is how many bad steps the run may have."""
        self.needs_checkpoint = policy == OnBadStep.ROLLBACK
        self._policy, self._most = policy, most
        self._state, self._ranks, self._context = state, ranks, context
        self._usual = UsualLosses()
        self._queue: deque[tuple[int, Tensor | PendingScalar, Sequence[DataWindow]]] = deque()
        self._findings: list[BadStepFinding] = []
        self._computed_again: dict[int, list[DataWindow]] = {}
        """On the main rank: the steps that were bad once and are being computed again, with their samples."""

    @property
    def sees_bad_step(self) -> bool:  # type: ignore[override]
        """See `StepGuard`."""
        return bool(self._findings)

    def begin(self) -> None:
        """Learn what is usual from the checkpoint; from the journal, if that was saved without."""
        tracker, known = self._context.tracker, self._state.healthy_losses
        step = self._state.counters.step
        own = None if tracker is None else healthy_losses(tracker.session, up_to_step=step)
        of_journal = self._ranks.broadcast(own, "sharing the usual losses")
        self._usual = UsualLosses(known if known is not None else of_journal or [])
        if tracker is not None:
            records = {each.step: each for each in tracker.session.bad_steps}
            self._computed_again = {
                each.step: each.data
                for each in records.values()
                if each.action == BadStepAction.ROLLED_BACK and each.step > step and not each.is_transient
            }

    def is_bad(self, step: int, loss: Tensor) -> Tensor | None:
        """See `StepGuard`; the limit is known before the step is computed."""
        if self._policy != OnBadStep.SKIP:
            return None
        limit = self._usual.limit_at(step)
        is_bad = ~loss.isfinite() if limit is None else ~loss.isfinite() | (loss > limit.loss)
        return is_bad.to(torch.float32)

    def add(self, step: int, loss: Tensor, data: Sequence[DataWindow]) -> None:
        """See `StepGuard`."""
        self._queue.append((step, start_copy(loss) if is_on_device(loss) else loss, data))

    def judge(self, up_to_step: int) -> None:
        """See `StepGuard`; behind a step that will be undone, none is judged."""
        while self._queue and self._queue[0][0] <= up_to_step:
            if self._findings and self._policy != OnBadStep.SKIP:
                return
            step, number, data = self._queue.popleft()
            loss = as_float(number, "loss") if isinstance(number, Tensor) else number.value()
            finding = judge_step(step, loss, data, self._usual)
            if finding is not None:
                self._findings.append(finding)
            elif self._computed_again.pop(step, None) == list(data):
                self._tell_passed(step, loss)

    def act(self) -> None:
        """See `StepGuard`.

        Raises:
            GoBack: To the newest healthy checkpoint before the step.
            BadStep: The run stops here.
            RankLost: Another process died, or did not take part within the limit.
        """
        gathered = self._ranks.all_gather(self._findings, "comparing bad steps")
        self._findings = []
        found = {finding.step: finding for findings in gathered for finding in findings}
        for step in sorted(found):
            self._act_on(found[step])

    def settle(self, step: int) -> None:
        """See `StepGuard`; raises like `act`."""
        self.judge(step)
        self.act()
        self._state.healthy_losses = self._usual.known()

    def _act_on(self, finding: BadStepFinding) -> None:
        action, error = act_together(
            self._ranks, "deciding about a bad step", lambda: self._decide(finding), only_main=True
        )[0]
        if error is not None:
            raise error
        if action != BadStepAction.SKIPPED_UPDATE:
            raise GoBack(finding)

    def _decide(self, finding: BadStepFinding) -> tuple[BadStepAction, BadStep | None]:
        """What is done about a step, on record before it is done; the error if the run stops."""
        tracker = self._context.tracker
        assert tracker is not None, "only the main rank decides, in its open run"
        session, data = tracker.session, finding.data
        action = choose_action(finding.step, data, session.bad_steps, policy=self._policy, most=self._most)
        earlier = seen_before(finding.step, data, session.bad_steps)
        tracker.record_bad_step(finding, action)
        if action == BadStepAction.STOPPED:
            newest = next(iter(CheckpointCatalog(session).to_go_back_to(finding.step)), None)
            hint = _STOP_HINT if self._policy == OnBadStep.STOP else _TOO_MANY_HINT
            return action, bad_step_error(finding, newest, hint=hint)
        if action == BadStepAction.SKIPPED_DATA:
            tracker.leave_data_out(data, finding.step)
        _tell(finding, action, was_same=earlier is not None and earlier.loss == finding.finite_loss)
        return action, None

    def _tell_passed(self, step: int, loss: float) -> None:
        log.warning(
            "Step %s was bad, and is fine now that it was computed again from the same samples (loss %.6g): a "
            "passing fault, perhaps of the hardware. Training goes on.",
            f"{step:,}",
            loss,
        )
        if self._context.tracker is not None:
            self._context.tracker.record_passed_step(step, loss)


def _tell(finding: BadStepFinding, action: BadStepAction, *, was_same: bool) -> None:
    samples = data_in_words(finding.data)
    again = f"It was bad before, with {'the same' if was_same else 'another'} loss"
    done = {
        BadStepAction.SKIPPED_UPDATE: f"The weights are left as they were; it was computed from {samples}.",
        BadStepAction.ROLLED_BACK: f"Going back to a checkpoint, to compute it again from the same {samples}.",
        BadStepAction.SKIPPED_DATA: f"{again}: going back to a checkpoint, and leaving out {samples}.",
    }
    log.warning("Bad step: %s %s", finding.evidence, done[action])
