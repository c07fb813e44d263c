from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from msgspec import UNSET, structs

from crashproof import TrackerSettings
from crashproof.checkpoints.digest import digest_of
from crashproof.checkpoints.on_record import is_as_verified, settled, stats_as_written
from crashproof.checkpoints.select import choose
from crashproof.checkpoints.verify import Verification, examine
from crashproof.disk.run_folder import RunFolder
from crashproof.reading.run_reader import RunReader
from crashproof.records.checkpoints import CheckpointMetadata, FileStat

LONG_AGO = 1_000_000_000.5
"""By the file's clock."""


@pytest.fixture
def run(open_tracker, update, save_checkpoint, run_dir):
    """A checkpoint at 3, its verification on record."""
    tracker = open_tracker()
    update(tracker, 3)
    save_checkpoint(tracker, 3, written_at=LONG_AGO)
    tracker.close()
    return run_dir


def recorded(run: Path) -> CheckpointMetadata:
    return RunReader.open(run).session().checkpoints[3]


def verification(run: Path, *, trusts_record: bool = True) -> Verification | str | None:
    found = examine(recorded(run), RunFolder.under(run), trusts_record=trusts_record)
    return found.problem or found.verification


def with_flipped_bit(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    return bytes(content)


def test_unchanged_files_are_not_read_again(run):
    assert Verification.ON_RECORD == verification(run)


def test_who_does_not_trust_the_record_reads(run):
    assert Verification.NOW == verification(run, trusts_record=False)


def test_a_restart_reads_although_a_verification_is_on_record(run):
    path = run / "checkpoint_3.pt"
    altered = with_flipped_bit(path)
    with path.open("r+b") as file:
        file.write(altered)
    # What no look at the file can tell.
    os.utime(path, (LONG_AGO, LONG_AGO))
    folder = RunFolder.under(run)

    assert Verification.ON_RECORD == verification(run)
    assert "its bytes differ from those that were saved" == verification(run, trusts_record=False)
    with pytest.raises(Exception, match="bytes differ"):
        choose([recorded(run)], folder)


def test_a_file_that_was_written_to_is_read(run):
    path = run / "checkpoint_3.pt"
    with path.open("r+b") as file:
        file.write(with_flipped_bit(path))

    assert "its bytes differ from those that were saved" == verification(run)


def test_another_file_with_the_same_time_and_size_is_read(run):
    path = run / "checkpoint_3.pt"
    path.with_suffix(".new").write_bytes(with_flipped_bit(path))
    os.replace(path.with_suffix(".new"), path)
    os.utime(path, (LONG_AGO, LONG_AGO))

    assert "its bytes differ from those that were saved" == verification(run)


def test_a_missing_one_is_missing(run):
    (run / "checkpoint_3.pt").unlink()

    assert "it is missing" == verification(run)


def test_a_copied_run_is_read_until_it_is_resumed(run, open_tracker, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(run, copied)

    assert Verification.NOW == verification(copied)

    tracker = open_tracker(output_dir=copied)
    assert tracker.get_recovery_checkpoint() is not None
    tracker.close()

    assert Verification.ON_RECORD == verification(copied)
    assert RunReader.open(copied).problems() == []


def test_a_resume_notes_only_what_is_not_on_record(run, open_tracker):
    tracker = open_tracker()
    tracker.get_recovery_checkpoint()
    tracker.close()

    chosen = [each for each in RunReader.open(run).events() if type(each).__name__ == "ResumeChosen"]

    assert [UNSET] == [each.verified for each in chosen]


def test_bytes_kept_of_an_overwritten_file_are_trusted_too(open_tracker, update, save_checkpoint, run_dir):
    tracker = open_tracker()
    update(tracker, 3)
    path = save_checkpoint(tracker, 3, path=run_dir / "last.pt", written_at=LONG_AGO)
    tracker.close()
    kept = next((run_dir / "progress" / "previous").iterdir())
    checkpoint = structs.replace(recorded(run_dir), verified=stats_as_written(kept, None, now=2e9))
    path.write_bytes(b"the next save, torn")

    found = examine(checkpoint, RunFolder.under(run_dir), trusts_record=True)

    assert (kept, None, Verification.ON_RECORD) == (found.path, found.problem, found.verification)


def test_a_folder_is_as_it_was_only_if_each_of_its_files_is(open_tracker, update, run_dir):
    tracker = open_tracker()
    update(tracker, 3)
    path = run_dir / "checkpoint_3"
    path.mkdir()
    for name in ("a", "b"):
        (path / name).write_text(name)
        os.utime(path / name, (LONG_AGO, LONG_AGO))
    tracker.record_checkpoint(3, path, 24)
    tracker.close()

    assert Verification.ON_RECORD == verification(run_dir)

    (path / "added").write_text("no part of it")
    assert Verification.ON_RECORD == verification(run_dir)

    (path / "b").write_text("c")
    assert "the bytes of b differ from those that were saved" == verification(run_dir)


def test_a_digest_from_the_background_is_a_verification(open_tracker, update, save_checkpoint, run_dir):
    tracker = open_tracker(settings=TrackerSettings(has_heartbeat=False, large_checkpoint_bytes=1))
    update(tracker, 3)
    save_checkpoint(tracker, 3, written_at=LONG_AGO)
    tracker.close()

    assert recorded(run_dir).digest == digest_of(run_dir / "checkpoint_3.pt").digest
    assert Verification.ON_RECORD == verification(run_dir)


def test_what_crashproof_wrote_itself_is_on_record_at_once(open_tracker, update, run_dir):
    tracker = open_tracker()
    update(tracker, 3)
    path = run_dir / "checkpoint_3.pt"
    path.write_bytes(b"weights")

    seen = stats_as_written(path, None, now=path.stat().st_mtime + 0.001)

    assert seen == {".": FileStat(7, path.stat().st_ino, path.stat().st_mtime_ns)}
    assert stats_as_written(run_dir / "none", None, now=2e9) is UNSET


@pytest.mark.parametrize(
    ("mtime_ns", "age_ns", "is_settled"),
    [
        pytest.param(1_500_000_001, 19_000_000, False, id="within a tick"),
        pytest.param(1_500_000_001, 21_000_000, True, id="a tick later"),
        pytest.param(3_000_000_000, 1_900_000_000, False, id="whole seconds, too early"),
        pytest.param(3_000_000_000, 2_100_000_000, True, id="whole seconds"),
        pytest.param(1_500_000_001, -1, False, id="from a clock that is ahead"),
    ],
)
def test_a_time_tells_of_later_writes_once_it_has_passed(mtime_ns, age_ns, is_settled):
    stats = {".": FileStat(1, 2, mtime_ns)}

    assert (stats if is_settled else UNSET) == settled(stats, now=(mtime_ns + age_ns) / 1e9)


def test_nothing_seen_is_nothing_settled():
    assert UNSET is settled({}, now=2e9)


def test_a_record_without_a_digest_is_not_trusted(run):
    assert not is_as_verified(structs.replace(recorded(run), digest=None), run / "checkpoint_3.pt")
