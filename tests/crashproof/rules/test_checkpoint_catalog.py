from __future__ import annotations

import math

import msgspec
import pytest

from crashproof.records.checkpoints import CheckpointMetadata, RemovedCheckpoint
from crashproof.records.events import CheckpointRecorded, CheckpointRemoved, CheckpointSuspected
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import Timeline, TrainingSession
from crashproof.rules.checkpoint_catalog import CheckpointCatalog


def checkpoint(step: int, loss: float | None) -> CheckpointMetadata:
    metrics = None
    if loss is not None:
        metrics = MetricsSnapshot(
            step=step,
            timestamp=1000.0,
            wall_clock_hours=0.0,
            loss=loss,
            loss_components={},
            learning_rate=0.1,
            samples_processed=step,
            tokens_processed=step,
        )
    return CheckpointMetadata(
        checkpoint_step=step,
        checkpoint_path=f"checkpoint_{step}.pt",
        created_at=1000.0,
        metrics=metrics,
        dataset_position=step,
        recovery_tags=["periodic"],
        attempt=1,
    )


def session(*known: CheckpointMetadata, **more) -> TrainingSession:
    return TrainingSession(
        session_id="training_1",
        start_time=0.0,
        config={},
        config_hash="",
        total_steps_target=100,
        checkpoints={each.checkpoint_step: each for each in known},
        **more,
    )


@pytest.mark.parametrize(
    ("loss", "losses_before", "expected"),
    [
        pytest.param(2.0, [], True, id="the first"),
        pytest.param(1.5, [2.0, 1.75], True, id="below all"),
        pytest.param(1.75, [2.0, 1.5], False, id="above one"),
        pytest.param(1.5, [2.0, 1.5], False, id="no better than one"),
        pytest.param(math.nan, [2.0], False, id="not a number"),
        pytest.param(math.nan, [], False, id="not a number, and the first"),
        pytest.param(None, [], False, id="without a loss"),
        pytest.param(5.0, [math.nan, None], True, id="beside none with a number"),
        pytest.param(math.inf, [], True, id="infinite, and the first"),
        pytest.param(math.inf, [3.0], False, id="infinite"),
    ],
)
def test_the_best_has_the_lowest_loss(loss, losses_before, expected):
    before = [checkpoint(step, each) for step, each in enumerate(losses_before, start=1)]

    assert expected == CheckpointCatalog(session(*before)).has_lowest_loss(checkpoint(10, loss))


def test_an_older_checkpoint_at_the_same_step_counts_too():
    known = session(checkpoint(1, 2.0), checkpoints_beside=[checkpoint(1, 1.0)])

    assert not CheckpointCatalog(known).has_lowest_loss(checkpoint(2, 1.5))


def test_a_step_that_is_computed_again_is_as_good_as_it_was():
    known = session(checkpoint(4, 2.0), checkpoint(6, 1.5), checkpoint(8, 1.0), timelines=[Timeline(2, 0, 5)])

    assert CheckpointCatalog(known).has_lowest_loss(checkpoint(6, 1.5))


def test_a_removed_checkpoint_still_counts():
    known = session(checkpoint(4, 2.0), lowest_loss_removed=1.0)

    assert (False, True) == tuple(
        CheckpointCatalog(known).has_lowest_loss(checkpoint(6, loss)) for loss in (1.5, 0.5)
    )


def saved_over(step: int, *, digest: str | None = "blake3:00") -> CheckpointRecorded:
    """A save of `last.pt`."""
    recorded = msgspec.structs.replace(
        checkpoint(step, 1.0), checkpoint_path="last.pt", created_at=1000.0 + step, num_bytes=1, digest=digest
    )
    return CheckpointRecorded(attempt=1, timestamp=recorded.created_at, checkpoint=recorded, seconds=0.0)


def overwritten_after(*saves: CheckpointRecorded) -> list[int]:
    catalog = CheckpointCatalog(session())
    for each in saves:
        catalog.apply(each)
    return [each.checkpoint_step for each in catalog.overwritten()]


def test_the_newest_two_that_were_overwritten_are_remembered():
    assert [3, 4] == overwritten_after(*map(saved_over, [1, 2, 3, 4, 5]))


def test_one_without_a_digest_is_not_remembered_and_takes_the_place_of_none():
    assert [1] == overwritten_after(saved_over(1), saved_over(2, digest=None), saved_over(3, digest=None))


def test_an_overwritten_one_is_tried_after_the_newer_record_and_before_older_steps():
    catalog = CheckpointCatalog(session(checkpoint(1, 1.0)))
    for each in map(saved_over, [2, 3]):
        catalog.apply(each)

    assert [3, 2, 1] == [each.checkpoint_step for each in catalog.candidates()]
    assert 3 == catalog.newest().checkpoint_step


def test_the_removal_of_a_path_forgets_what_was_overwritten_under_it():
    catalog = CheckpointCatalog(session())
    for each in map(saved_over, [1, 2]):
        catalog.apply(each)
    gone = [RemovedCheckpoint(step=2, checkpoint_path="last.pt")]
    catalog.apply(CheckpointRemoved(attempt=1, timestamp=2000.0, checkpoints=gone, verified="ck.pt"))

    assert [] == catalog.candidates()


def suspected(checkpoint: CheckpointMetadata, *, is_suspect: bool) -> CheckpointSuspected:
    return CheckpointSuspected(
        timestamp=1000.0,
        attempt=1,
        step=checkpoint.checkpoint_step,
        checkpoint_path=checkpoint.checkpoint_path,
        created_at=checkpoint.created_at,
        reason="two resumes died",
        is_suspect=is_suspect,
    )


def test_a_suspect_one_is_tried_after_all_others_until_that_is_withdrawn():
    older, newer = checkpoint(3, 2.0), checkpoint(6, 1.0)
    catalog = CheckpointCatalog(session(older, newer))
    catalog.apply(suspected(newer, is_suspect=True))
    tried_while_suspect = catalog.candidates()
    catalog.apply(suspected(newer, is_suspect=False))

    assert [3, 6] == [each.checkpoint_step for each in tried_while_suspect]
    assert newer == catalog.newest()
    assert "" == catalog.suspicion_of(newer)


def test_a_newer_record_of_its_path_is_not_suspect():
    known = checkpoint(6, 1.0)
    catalog = CheckpointCatalog(session(known))
    catalog.apply(suspected(known, is_suspect=True))

    assert "two resumes died" == catalog.suspicion_of(known)
    assert "" == catalog.suspicion_of(msgspec.structs.replace(known, created_at=2000.0))
