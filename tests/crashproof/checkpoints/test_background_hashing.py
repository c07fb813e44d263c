from __future__ import annotations

import threading
from pathlib import Path

import pytest
from blake3 import blake3

from crashproof.checkpoints.background_hashing import BackgroundDigests
from crashproof.checkpoints.digest import digest_of
from crashproof.disk.run_folder import RunFolder
from crashproof.records.checkpoints import CheckpointMetadata

UNREADABLE = Path("/proc/self/mem")


@pytest.fixture
def folder(tmp_path):
    return RunFolder.under(tmp_path)


@pytest.fixture
def digests(folder):
    digests = BackgroundDigests(folder)
    yield digests
    digests.close()


def recorded(path: str, num_bytes: int) -> CheckpointMetadata:
    return CheckpointMetadata(
        checkpoint_step=5,
        checkpoint_path=path,
        created_at=0.0,
        metrics=None,
        dataset_position=0,
        recovery_tags=[],
        attempt=1,
        num_bytes=num_bytes,
    )


def test_a_finished_digest_is_returned_once(digests, tmp_path):
    (tmp_path / "a.pt").write_bytes(b"weights")
    digests.start(recorded("a.pt", 7))
    digests.wait()

    assert [("a.pt", f"blake3:{blake3(b'weights').hexdigest()}")] == [
        (checkpoint.checkpoint_path, digest.digest) for checkpoint, digest in digests.take_finished()
    ]
    assert [] == digests.take_finished()


def test_digests_are_returned_in_the_order_in_which_they_were_started(digests, tmp_path):
    for name in ("a.pt", "b.pt", "c.pt"):
        (tmp_path / name).write_bytes(b"weights")
        digests.start(recorded(name, 7))
    digests.wait()

    assert ["a.pt", "b.pt", "c.pt"] == [checkpoint.checkpoint_path for checkpoint, _ in digests.take_finished()]


def test_a_checkpoint_that_changed_meanwhile_is_logged_and_left_out(digests, tmp_path, caplog):
    (tmp_path / "a.pt").write_bytes(b"longer weights")
    digests.start(recorded("a.pt", 7))
    digests.wait()

    assert [] == digests.take_finished()
    assert ["a.pt changed after it was recorded; it stays unverified."] == caplog.messages


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs a file that even root cannot read")
def test_a_checkpoint_that_cannot_be_read_is_logged_and_left_out(digests, caplog):
    digests.start(recorded(str(UNREADABLE), 7))
    digests.wait()

    assert [] == digests.take_finished()
    assert [True] == [message.startswith("Could not read /proc/self/mem back") for message in caplog.messages]


def test_without_work_there_is_no_thread(digests):
    before = threading.enumerate()
    digests.wait()

    assert [] == digests.take_finished()
    assert before == threading.enumerate()


def test_the_background_digests_what_the_foreground_would(digests, folder, tmp_path):
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded" / "a").write_bytes(b"123")
    digests.start(recorded("sharded", 3))
    digests.wait()

    assert [digest_of(tmp_path / "sharded")] == [digest for _, digest in digests.take_finished()]
