"""The random walks notice faults that the catalog of checkpoints has had: each is put back, and must be found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from checkpoint_walks import Walk

from crashproof.checkpoints import background_hashing
from crashproof.checkpoints.digest import digest_of
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.tracking import checkpoint_recorder

_MOST_WALKS = 300

really_abandoned = CheckpointCatalog.is_abandoned
really_find = CheckpointCatalog._find
really_record = CheckpointCatalog._record


def forget_abandoned_steps(patch):
    """A list of steps: recording a path again takes the step that it had from the list."""
    standing_again = set()

    def record(catalog, event):
        earlier = catalog.at_path(event.checkpoint.checkpoint_path)
        if earlier is not None and earlier.checkpoint_step != event.checkpoint.checkpoint_step:
            standing_again.add((catalog._session.session_id, earlier.checkpoint_step))
        really_record(catalog, event)

    def is_abandoned(catalog, checkpoint):
        is_again = (catalog._session.session_id, checkpoint.checkpoint_step) in standing_again
        return not is_again and really_abandoned(catalog, checkpoint)

    patch.setattr(CheckpointCatalog, "_record", record)
    patch.setattr(CheckpointCatalog, "is_abandoned", is_abandoned)


def is_abandoned_by_a_later_attempt_only(catalog, checkpoint):
    return any(
        each.attempt > checkpoint.attempt and each.first_step < checkpoint.next_step
        for each in catalog._session.timelines
    )


def find_one_for_each_step_only(catalog, path, step, created_at):
    found = really_find(catalog, path, step, created_at)
    return None if found in catalog._session.checkpoints_beside else found


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a path recorded again makes what was left at its step stand again": forget_abandoned_steps,
    "going back inside an attempt is not noticed": lambda patch: patch.setattr(
        CheckpointCatalog, "is_abandoned", is_abandoned_by_a_later_attempt_only
    ),
    "an abandoned checkpoint comes before older ones that stand": lambda patch: patch.setattr(
        CheckpointCatalog, "candidates", lambda catalog: catalog.all()[::-1]
    ),
    "retention counts abandoned checkpoints": lambda patch: patch.setattr(
        CheckpointCatalog, "standing", CheckpointCatalog.all
    ),
    "one of two checkpoints of a step cannot be quarantined": lambda patch: patch.setattr(
        CheckpointCatalog, "_find", find_one_for_each_step_only
    ),
    "the bytes of an overwritten file are not kept": lambda patch: patch.setattr(
        checkpoint_recorder, "keep_previous", lambda *args, **kwargs: None
    ),
    "the digest of bytes that were overwritten is taken for that of the record": lambda patch: patch.setattr(
        background_hashing, "_digest_unchanged", lambda checkpoint, path: digest_of(path)
    ),
    "what a record without a digest has replaced is forgotten": lambda patch: patch.setattr(
        CheckpointCatalog, "_overwrite", lambda catalog, recorded: None
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_walks_find_a_fault_that_is_put_back(tmp_path, monkeypatch, fault):
    FAULTS[fault](monkeypatch)
    for seed in range(_MOST_WALKS):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            Walk(folder, seed).run(25)
        except Exception as error:
            print(f"\n{fault}: found by walk {seed + 1} ({type(error).__name__}: {str(error).splitlines()[0]})")
            return
    pytest.fail(f"{_MOST_WALKS} walks have not noticed: {fault}")
