"""Bad steps in anybody's loop: the verdict, what is recorded of it, and the checkpoint to go back to."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashproof import KeepLatest, RunReader, TrackerSettings
from crashproof.errors import BadStep, CrashproofError
from crashproof.records.bad_steps import DataWindow
from crashproof.records.events import BadStepFound
from crashproof.records.states import BadStepAction
from crashproof.rules.bad_steps.finding import BadStepFinding, record_in_words
from crashproof.rules.retention import RetentionRule

LOSSES = [2.0, 2.1, 1.9, 2.05, 1.95]


@pytest.fixture
def open_quiet(open_tracker: Callable[..., Any]) -> Callable[..., Any]:
    def open_it(keep: RetentionRule | None = None) -> Any:
        return open_tracker(settings=TrackerSettings(has_heartbeat=False, keep=keep))

    return open_it


def report(tracker: Any, step: int, loss: float | None = None) -> Any:
    tracker.update_metrics(step, LOSSES[step % 5] if loss is None else loss, {}, 0.1, 8 * step, 100 * step)
    return tracker.check_step()


def train(tracker: Any, first: int, last: int) -> None:
    for step in range(first, last + 1):
        assert not report(tracker, step).is_bad


def tags(tracker: Any) -> dict[int, list[str]]:
    return {step: each.recovery_tags for step, each in tracker.session.checkpoints.items()}


@pytest.mark.parametrize("loss, cause", [(9.5, "spike"), (math.nan, "non_finite"), (-math.inf, "non_finite")])
def test_a_bad_step_is_told_with_its_evidence_and_the_checkpoint_to_go_back_to(
    open_quiet: Callable[..., Any],
    save_checkpoint: Callable[..., Path],
    run_dir: Path,
    loss: float,
    cause: str,
) -> None:
    tracker = open_quiet()
    train(tracker, 1, 30)
    save_checkpoint(tracker, 30)

    verdict = report(tracker, 31, loss)

    assert (True, 31, cause, 30) == (verdict.is_bad, verdict.step, verdict.cause, verdict.checkpoint.checkpoint_step)
    assert "the 29 healthy losses before it are about 2, and up to 3 would have passed" in verdict.evidence
    with pytest.raises(
        BadStep, match=r"samples 240 to 247 of the order\. The newest healthy checkpoint is checkpoint_30"
    ):
        verdict.raise_if_bad()
    tracker.close()
    reader = RunReader.open(run_dir)
    events = [each for each in reader.events() if isinstance(each, BadStepFound)]
    assert [(31, cause, BadStepAction.REPORTED)] == [(each.step, each.cause, each.action) for each in events]
    assert [(31, [DataWindow(240, 248)])] == [(each.step, each.data) for each in reader.session().bad_steps]
    assert tracker.session.bad_steps == reader.session().bad_steps
    assert [] == reader.problems()


def test_a_fine_verdict_raises_nothing_and_has_no_evidence(open_quiet: Callable[..., Any]) -> None:
    verdict = report(open_quiet(), 1)

    verdict.raise_if_bad()

    assert (False, 1, None, "", None) == (
        verdict.is_bad,
        verdict.step,
        verdict.cause,
        verdict.evidence,
        verdict.checkpoint,
    )


def test_nothing_is_judged_unless_it_is_asked(open_quiet: Callable[..., Any], save_checkpoint: Any) -> None:
    tracker = open_quiet()
    for step in range(1, 31):
        tracker.update_metrics(step, LOSSES[step % 5], {}, 0.1, 8 * step, 100 * step)
    tracker.update_metrics(31, math.nan, {}, 0.1, 248, 3100)
    save_checkpoint(tracker, 31)

    assert ([], {31: ["periodic"]}) == (tracker.session.bad_steps, tags(tracker))


def test_updates_between_two_verdicts_are_all_judged_and_none_twice(open_quiet: Callable[..., Any]) -> None:
    tracker = open_quiet()
    train(tracker, 1, 30)
    for step, loss in ((31, 50.0), (32, 2.0), (33, 60.0)):
        tracker.update_metrics(step, loss, {}, 0.1, 8 * step, 100 * step)

    verdicts = [tracker.check_step() for _ in range(3)]

    assert [31, 33, None] == [each.step for each in verdicts]
    assert [True, True, False] == [each.is_bad for each in verdicts]


def test_a_checkpoint_of_a_bad_step_is_tagged_and_a_restart_prefers_a_healthy_one(
    open_quiet: Callable[..., Any], save_checkpoint: Callable[..., Path]
) -> None:
    tracker = open_quiet(keep=KeepLatest(1))
    train(tracker, 1, 30)
    save_checkpoint(tracker, 30)
    for step in (31, 32, 33):
        report(tracker, step, 50.0)
        save_checkpoint(tracker, step)
    tracker.close()

    again = open_quiet(keep=KeepLatest(1))

    # The retention rule keeps the healthy one beside the newest.
    assert {30: ["periodic"], 33: ["periodic", "bad_loss"]} == tags(again)
    assert 30 == again.get_recovery_checkpoint().checkpoint_step
    assert 30 == again.get_recovery_checkpoint(before_step=33).checkpoint_step
    assert None is again.get_recovery_checkpoint(before_step=30)


def test_a_bad_checkpoint_is_offered_where_there_is_no_other(
    open_quiet: Callable[..., Any], save_checkpoint: Callable[..., Path]
) -> None:
    tracker = open_quiet()
    report(tracker, 1, math.nan)
    save_checkpoint(tracker, 1)

    assert 1 == tracker.get_recovery_checkpoint().checkpoint_step
    assert None is tracker.get_recovery_checkpoint(before_step=5)


def test_after_going_back_the_same_step_is_judged_again(
    open_quiet: Callable[..., Any], save_checkpoint: Callable[..., Path]
) -> None:
    tracker = open_quiet()
    train(tracker, 1, 30)
    save_checkpoint(tracker, 30)
    report(tracker, 31, 50.0)
    tracker.get_recovery_checkpoint(before_step=31)

    verdicts = [report(tracker, 31), report(tracker, 32), report(tracker, 33, 50.0)]
    save_checkpoint(tracker, 32)

    assert [False, False, True] == [each.is_bad for each in verdicts]
    assert ["periodic"] == tags(tracker)[32]
    # Steps 1 to 31, of which the first 31 was bad and is superseded.
    assert 31 == verdicts[2].finding.limit.num_losses


def test_another_life_of_the_run_judges_by_the_healthy_losses_of_the_one_before(
    open_quiet: Callable[..., Any],
) -> None:
    tracker = open_quiet()
    train(tracker, 1, 30)
    report(tracker, 31, 50.0)
    tracker.close()

    again = open_quiet()
    verdict = report(again, 32, 50.0)

    assert verdict.is_bad
    assert 30 == verdict.finding.limit.num_losses


def test_what_a_trainer_does_about_a_bad_step_is_on_record_and_survives_a_restart(
    open_quiet: Callable[..., Any], run_dir: Path
) -> None:
    tracker = open_quiet()
    train(tracker, 1, 30)
    window = DataWindow(240, 248)
    finding = BadStepFinding(step=31, cause="spike", loss=9.0, limit=None, data=(window,))  # type: ignore[arg-type]
    tracker.update_metrics(31, 9.0, {}, 0.1, 248, 3100)
    tracker.record_bad_step(finding, BadStepAction.ROLLED_BACK)
    tracker.record_passed_step(31, 2.0)
    tracker.record_passed_step(7, 2.0)
    tracker.record_bad_step(finding, BadStepAction.SKIPPED_DATA)
    tracker.leave_data_out([window], 31)
    tracker.leave_data_out([DataWindow(248, 256)])
    tracker.close()
    (run_dir / "progress" / "session.json").unlink()

    session = open_quiet().session

    assert [DataWindow(240, 256)] == session.data_left_out
    assert (2, 2, [True, False]) == (
        session.bad_steps_found,
        session.rollbacks,
        [each.is_transient for each in session.bad_steps],
    )
    assert record_in_words(session.bad_steps[1]).endswith("and leaves these samples out")


def test_a_step_that_has_other_samples_now_is_not_compared_with_what_it_was(
    open_quiet: Callable[..., Any], save_checkpoint: Callable[..., Path]
) -> None:
    tracker = open_quiet()
    train(tracker, 1, 30)
    save_checkpoint(tracker, 30)
    verdict = report(tracker, 31, 50.0)
    tracker.record_bad_step(verdict.finding, BadStepAction.SKIPPED_DATA)
    tracker.leave_data_out(verdict.finding.data, 31)
    tracker.close()

    again = open_quiet()
    again.get_recovery_checkpoint()
    report(again, 31, 2.01)

    assert None is again.session.replay_differed_at


def test_off_the_main_process_no_step_is_bad(run_dir: Path) -> None:
    from crashproof import training_progress_context

    with training_progress_context({}, run_dir, 10, is_main_process=False) as progress:
        verdict = progress.check_step()

    assert (False, None) == (verdict.is_bad, verdict.step)


def test_the_error_is_one_of_the_library(open_quiet: Callable[..., Any]) -> None:
    said = r"Step 1 has a non-finite loss\. It was computed from unknown samples\. There is no healthy checkpoint"
    with pytest.raises(CrashproofError, match=said):
        report(open_quiet(), 1, math.nan).raise_if_bad()
