from __future__ import annotations

import os
import shutil
import zipfile
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3

from crashproof.checkpoints.digest import digest_of, make_durable, size_of
from crashproof.checkpoints.previous import is_kept, keep_previous
from crashproof.checkpoints.quarantine import quarantine
from crashproof.checkpoints.select import choose
from crashproof.checkpoints.verify import examine_previous, is_damaged, problem_with
from crashproof.digests import SHA256
from crashproof.disk.files import REAL_DISK
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import FileUnreadable, NoUsableCheckpoint, StorageUnwritable
from crashproof.records.checkpoints import CheckpointMetadata, RefusedCheckpoint
from crashproof.records.events import Stamp
from crashproof.testing import FaultyDisk


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder.under(tmp_path / "run")
    folder.progress.mkdir(parents=True)
    return folder


@pytest.fixture
def saved(folder):
    """Save and describe a checkpoint; a `str` becomes a file, a `dict` a folder of files."""

    def save(step: int, content: str | dict[str, str] = "weights", *, name: str = "", **known) -> CheckpointMetadata:
        path = folder.root / (name or f"checkpoint_{step}")
        files = {"": content} if isinstance(content, str) else content
        for each, text in files.items():
            (path / each).parent.mkdir(parents=True, exist_ok=True)
            (path / each).write_text(text)
        digest = digest_of(path)
        found = {"num_bytes": digest.num_bytes, "digest": digest.digest, "files": digest.files} | known
        return described(step, folder.recorded_path(path), **found)

    return save


STAMP = Stamp(timestamp=1000.0, attempt=1)


def described(step: int, path: str, **known) -> CheckpointMetadata:
    return CheckpointMetadata(
        checkpoint_step=step,
        checkpoint_path=path,
        created_at=1000.0,
        metrics=None,
        dataset_position=8 * step,
        recovery_tags=["periodic"],
        attempt=1,
        **known,
    )


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_file_is_digested(tmp_path):
    content = b"weights" * 500_000
    (tmp_path / "a.pt").write_bytes(content)
    digest = digest_of(tmp_path / "a.pt")

    assert (len(content), f"blake3:{blake3(content).hexdigest()}", None) == (
        digest.num_bytes,
        digest.digest,
        digest.files,
    )


def test_a_folder_is_digested_file_by_file(tmp_path):
    (tmp_path / "sharded" / "deep").mkdir(parents=True)
    (tmp_path / "sharded" / "b").write_text("22")
    (tmp_path / "sharded" / "deep" / "a").write_text("1")
    digest = digest_of(tmp_path / "sharded")

    assert {"b": 2, "deep/a": 1} == {name: each.num_bytes for name, each in digest.files.items()}
    assert f"blake3:{blake3(b'22').hexdigest()}" == digest.files["b"].digest
    assert 3 == digest.num_bytes == size_of(tmp_path / "sharded")


def test_a_folder_with_the_same_files_has_the_same_digest(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("same")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "renamed").write_text("same")

    assert digest_of(tmp_path / "one") == digest_of(tmp_path / "two")
    assert digest_of(tmp_path / "one").digest != digest_of(tmp_path / "three").digest


def test_an_intact_checkpoint_has_no_problem(folder, saved):
    assert [None, None] == [
        problem_with(saved(1), folder),
        problem_with(saved(2, {"a": "1", "b": "2"}), folder),
    ]


@pytest.mark.parametrize(
    "content, damage, expected",
    [
        pytest.param("weights", lambda path: path.unlink(), "it is missing", id="deleted"),
        pytest.param("weights", lambda path: path.write_text("wei"), "it has 3 bytes instead of 7", id="truncated"),
        pytest.param("weights", flip_a_bit, "its bytes differ from those that were saved", id="one-bit-flipped"),
        pytest.param(
            {"a": "one", "b": "two"}, lambda path: shutil.rmtree(path), "it is missing", id="folder-deleted"
        ),
        pytest.param(
            {"a": "one", "b": "two"},
            lambda path: flip_a_bit(path / "b"),
            "the bytes of b differ from those that were saved",
            id="one-bit-flipped-in-a-folder",
        ),
        pytest.param(
            {"a": "one", "b": ""}, lambda path: (path / "b").unlink(), "b is missing in it", id="empty-file-deleted"
        ),
        pytest.param({"a": "one"}, lambda path: (path / "c").touch(), None, id="empty-file-added"),
        pytest.param(
            {"a": "one", "b": "two"},
            lambda path: (path / "b").unlink(),
            "b is missing in it",
            id="file-of-a-folder-deleted",
        ),
        pytest.param(
            {"a": "one"},
            lambda path: (shutil.rmtree(path), path.write_text("one")),
            "a is missing in it",
            id="folder-turned-into-a-file",
        ),
    ],
)
def test_damage_is_found_and_named(folder, saved, content, damage, expected):
    checkpoint = saved(5, content)
    damage(folder.root / "checkpoint_5")

    assert expected == problem_with(checkpoint, folder)


@pytest.mark.parametrize("content", ["weights", {"a": "one", "b": "two"}], ids=["file", "folder"])
def test_a_checkpoint_that_was_recorded_with_sha256_is_verified_by_it(folder, saved, content):
    checkpoint = saved(5, content)
    digest = digest_of(folder.root / "checkpoint_5", algorithm=SHA256)
    recorded = msgspec.structs.replace(checkpoint, digest=digest.digest, files=digest.files)

    assert None is problem_with(recorded, folder)
    damaged = folder.root / "checkpoint_5" if isinstance(content, str) else folder.root / "checkpoint_5" / "b"
    flip_a_bit(damaged)
    assert problem_with(recorded, folder).endswith("those that were saved")
    assert is_damaged(recorded, folder)


@pytest.mark.parametrize("content", ["weights", {"a": "one", "b": "two"}], ids=["file", "folder"])
def test_a_checkpoint_with_a_digest_by_a_later_algorithm_is_neither_intact_nor_damaged(folder, saved, content):
    known = saved(5, content)
    files = known.files and {
        name: msgspec.structs.replace(each, digest="blake4:00") for name, each in known.files.items()
    }
    checkpoint = msgspec.structs.replace(known, digest="blake4:00", files=files)

    for trusts_unverified in (False, True):
        assert "its digest is by 'blake4', which this crashproof cannot compute; upgrade crashproof" == problem_with(
            checkpoint, folder, trusts_unverified=trusts_unverified
        )
    assert not is_damaged(checkpoint, folder)
    with pytest.raises(NoUsableCheckpoint, match="upgrade crashproof"):
        choose([checkpoint], folder)


@pytest.mark.parametrize(
    "digest, expected",
    [
        pytest.param(f"blake3:{blake3(b'weights').hexdigest()}", True, id="as it was recorded"),
        pytest.param(f"sha256:{sha256(b'weights').hexdigest()}", True, id="recorded with SHA-256"),
        pytest.param("blake4:00", True, id="recorded by a later version, which alone can compare"),
        pytest.param(f"sha256:{sha256(b'others').hexdigest()}", False, id="of other bytes"),
    ],
)
def test_bytes_of_a_record_are_kept_if_they_are_its_own(folder, saved, digest, expected):
    checkpoint = msgspec.structs.replace(saved(5, name="last.pt"), digest=digest)
    keep_previous(checkpoint, folder, is_replaced=False, disk=REAL_DISK)

    assert expected is is_kept(checkpoint, folder)
    # They are offered only where they can be verified.
    offered = examine_previous(checkpoint, folder)
    assert (expected and not digest.startswith("blake4")) is (offered is not None)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that even root cannot read")
def test_a_checkpoint_that_cannot_be_read_is_a_problem(folder):
    checkpoint = described(5, "/proc/self/mem", num_bytes=0, digest="blake3:5a")

    assert "it cannot be read (Input/output error)" == problem_with(checkpoint, folder)


def zipped(path: Path) -> Path:
    """A file as `torch.save` writes it: an archive with checksums of its own."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"weights" * 100)
        archive.writestr("data/0", b"more weights" * 100)
    return path


REMOTE = described(9, "s3://bucket/9")
UNSEEN = "it did not exist when it was recorded, and cannot be verified"
UNDIGESTED = "its digest was not computed before the run died, so it cannot be verified"


@pytest.mark.parametrize(
    "path, num_bytes, if_trusted, if_not",
    [
        pytest.param("s3://bucket/5", None, None, UNSEEN, id="remote-and-never-seen"),
        pytest.param("there.pt", 7, None, UNDIGESTED, id="sized-but-not-digested"),
        pytest.param(
            "there.pt",
            9,
            "it has 7 bytes instead of 9",
            "it has 7 bytes instead of 9",
            id="of-another-size",
        ),
        pytest.param("gone.pt", 7, "it is missing", "it is missing", id="seen-once-and-gone"),
    ],
)
def test_an_undigested_checkpoint_passes_only_if_it_is_trusted(folder, path, num_bytes, if_trusted, if_not):
    (folder.root / "there.pt").write_text("weights")
    checkpoint = described(5, path, num_bytes=num_bytes)

    assert if_trusted == problem_with(checkpoint, folder, trusts_unverified=True)
    assert if_not == problem_with(checkpoint, folder)


def test_an_intact_archive_is_verified_without_a_digest(folder):
    path = zipped(folder.root / "a.pt")

    assert problem_with(described(5, "a.pt", num_bytes=path.stat().st_size), folder) is None


@pytest.mark.parametrize("is_trusted", [True, False])
@pytest.mark.parametrize(
    "place, expected",
    [
        pytest.param(b"weightsweights", "data.pkl in its archive is damaged", id="bytes-of-a-member"),
        pytest.param(b"PK\x01\x02", "its archive is damaged", id="list-of-members"),
    ],
)
def test_a_corrupt_archive_is_found_without_a_digest(folder, place, expected, is_trusted):
    path = zipped(folder.root / "a.pt")
    content = path.read_bytes()
    path.write_bytes(content.replace(place, bytes(len(place)), 1))
    problem = problem_with(described(5, "a.pt", num_bytes=len(content)), folder, trusts_unverified=is_trusted)

    assert problem is not None
    assert problem.startswith(expected)


def test_the_first_intact_candidate_is_chosen(folder, saved):
    choice = choose([saved(20), saved(10), saved(5)], folder)

    assert (20, []) == (choice.checkpoint.checkpoint_step, choice.refused)


def test_newest_truncated_second_flipped_third_deleted_so_the_fourth_is_chosen(folder, saved):
    checkpoints = [saved(step) for step in (4, 3, 2, 1)]
    (folder.root / "checkpoint_4").write_text("wei")
    flip_a_bit(folder.root / "checkpoint_3")
    (folder.root / "checkpoint_2").unlink()
    choice = choose(checkpoints, folder)

    assert 1 == choice.checkpoint.checkpoint_step
    assert [
        ("checkpoint_4", "it has 3 bytes instead of 7"),
        ("checkpoint_3", "its bytes differ from those that were saved"),
        ("checkpoint_2", "it is missing"),
    ] == [(checkpoint.checkpoint_path, reason) for checkpoint, reason in choice.refused]


def test_nothing_is_chosen_if_none_was_recorded(folder):
    assert choose([], folder) is None


def test_if_all_are_damaged_the_error_names_each_and_why(folder, saved):
    checkpoints = [saved(step) for step in (2, 1)]
    (folder.root / "checkpoint_1").unlink()
    flip_a_bit(folder.root / "checkpoint_2")
    gone = [RefusedCheckpoint(checkpoint_step=3, checkpoint_path="checkpoint_3", reason="it has 1 bytes")]

    with pytest.raises(NoUsableCheckpoint) as refused:
        choose(checkpoints, folder, quarantined=gone)

    assert [
        ("checkpoint_2", "its bytes differ from those that were saved"),
        ("checkpoint_1", "it is missing"),
        ("checkpoint_3", "it has 1 bytes; quarantined earlier"),
    ] == refused.value.refused
    assert "checkpoint_1: it is missing" in str(refused.value)


def test_checkpoints_quarantined_earlier_prevent_a_start_from_zero(folder):
    gone = [RefusedCheckpoint(checkpoint_step=3, checkpoint_path="checkpoint_3", reason="it is torn")]

    with pytest.raises(NoUsableCheckpoint, match="checkpoint_3: it is torn; quarantined earlier"):
        choose([], folder, quarantined=gone)


def test_an_unverified_checkpoint_is_offered_if_nothing_verifiable_was_recorded(folder):
    choice = choose([described(9, "s3://bucket/9"), described(5, "s3://bucket/5")], folder)

    assert ("s3://bucket/9", []) == (choice.checkpoint.checkpoint_path, choice.refused)


def test_a_verified_checkpoint_is_preferred_to_a_newer_unverified_one(folder, saved):
    choice = choose([REMOTE, saved(5)], folder)

    assert 5 == choice.checkpoint.checkpoint_step
    assert [(REMOTE, UNSEEN)] == choice.refused


def test_an_unverified_checkpoint_is_not_offered_if_others_were_quarantined(folder):
    gone = [RefusedCheckpoint(checkpoint_step=3, checkpoint_path="checkpoint_3", reason="it is torn")]

    with pytest.raises(NoUsableCheckpoint):
        choose([REMOTE], folder, quarantined=gone)


def test_a_new_archive_without_a_digest_is_preferred_to_an_older_digested_checkpoint(folder, saved):
    path = zipped(folder.root / "a.pt")
    choice = choose([described(9, "a.pt", num_bytes=path.stat().st_size), saved(5)], folder)

    assert 9 == choice.checkpoint.checkpoint_step


def test_an_unverified_checkpoint_is_not_offered_if_the_verifiable_ones_are_damaged(folder, saved):
    checkpoints = [REMOTE, saved(5)]
    (folder.root / "checkpoint_5").unlink()

    with pytest.raises(NoUsableCheckpoint) as refused:
        choose(checkpoints, folder)

    assert [("s3://bucket/9", UNSEEN), ("checkpoint_5", "it is missing")] == refused.value.refused


def test_a_run_that_was_moved_still_finds_its_checkpoints(folder, saved, tmp_path):
    checkpoints = [saved(5), saved(10, {"a": "1"}), saved(15, name="progress/checkpoint_15")]
    moved = RunFolder.under(folder.root.rename(tmp_path / "elsewhere"))

    assert [None] * 3 == [problem_with(each, moved) for each in checkpoints]


def test_a_checkpoint_outside_the_run_is_known_by_its_absolute_path(folder, tmp_path):
    outside = tmp_path / "nas" / "5.pt"

    assert str(outside) == folder.recorded_path(outside)
    assert outside == folder.find(str(outside))


def test_a_quarantined_checkpoint_never_overwrites_another(folder, saved):
    targets = []
    for _ in range(2):
        checkpoint = saved(5)
        event = quarantine(folder.find(checkpoint.checkpoint_path), folder, STAMP, step=5, reason="it is torn")
        targets.append(folder.find(event.moved_to))

    assert [folder.quarantine / "checkpoint_5", folder.quarantine / "checkpoint_5.1"] == targets
    assert all(target.exists() for target in targets)
    assert not (folder.root / "checkpoint_5").exists()


def test_a_checkpoint_outside_the_run_is_not_moved(folder, tmp_path):
    (tmp_path / "outside.pt").write_text("weights")

    assert quarantine(tmp_path / "outside.pt", folder, STAMP, step=5, reason="it is torn") is None
    assert (tmp_path / "outside.pt").exists()


@pytest.mark.parametrize(
    "path, known, expected",
    [
        pytest.param("there.pt", {"num_bytes": 7, "digest": "blake3:another"}, True, id="there-and-altered"),
        pytest.param("there.pt", {"num_bytes": 9}, True, id="there-and-of-another-size"),
        pytest.param("there.pt", {"num_bytes": 7}, False, id="there-and-never-digested"),
        pytest.param("gone.pt", {"num_bytes": 7}, False, id="gone"),
        pytest.param("there.pt", {}, False, id="never-seen-when-recorded"),
    ],
)
def test_only_an_existing_altered_checkpoint_is_damaged(folder, path, known, expected):
    (folder.root / "there.pt").write_text("weights")

    assert expected is is_damaged(described(5, path, **known), folder)


@pytest.mark.parametrize(
    "files", [pytest.param([""], id="file"), pytest.param(["a", "deep/b"], id="folder-with-a-folder-in-it")]
)
def test_a_checkpoint_of_other_code_survives_a_power_loss_once_made_durable(folder, tmp_path, files):
    disk = FaultyDisk(folder.root, tmp_path / "scratch")
    path = folder.root / "checkpoint_5"
    for name in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("weights")
    make_durable(path, disk=disk)
    disk.after_power_loss(tmp_path / "left", "strict")

    assert digest_of(path) == digest_of(tmp_path / "left" / "checkpoint_5")


def test_a_pipe_for_a_checkpoint_is_a_problem_that_is_named(folder):
    os.mkfifo(folder.root / "checkpoint_5")
    checkpoint = described(5, "checkpoint_5", num_bytes=7, digest="blake3:5a")

    assert "it is a named pipe, not a regular file" == problem_with(checkpoint, folder)
    with pytest.raises(FileUnreadable, match="a named pipe"):
        digest_of(folder.root / "checkpoint_5")
    with pytest.raises(FileUnreadable, match="a named pipe"):
        make_durable(folder.root / "checkpoint_5")


def test_a_pipe_in_a_checkpoint_is_left_out_and_named(folder, saved, caplog):
    checkpoint = saved(5, {"weights": "1", "optimizer": "2"})
    path = folder.root / "checkpoint_5"
    os.mkfifo(path / "control")
    for number in range(4):
        (path / f"zero_{number}").symlink_to("/dev/zero")

    make_durable(path)

    assert "control is a named pipe, zero_0 is a device, zero_1 is a device and 2 more" in caplog.text
    assert None is problem_with(checkpoint, folder)


def test_a_pipe_in_the_place_of_a_file_is_named(folder, saved):
    checkpoint = saved(5, {"weights": "", "optimizer": "2"})
    (folder.root / "checkpoint_5" / "weights").unlink()
    os.mkfifo(folder.root / "checkpoint_5" / "weights")

    assert "weights in it is a named pipe, not a regular file" == problem_with(checkpoint, folder)


def test_a_file_that_turns_into_a_pipe_while_it_is_verified_is_named(folder, saved, monkeypatch):
    checkpoint = saved(5, {"weights": "1", "optimizer": "2"})
    really_open = os.open

    def swap(path, *rest):
        if str(path).endswith("weights"):
            os.unlink(path)
            os.mkfifo(path)
        return really_open(path, *rest)

    monkeypatch.setattr(os, "open", swap)

    problem = problem_with(checkpoint, folder)

    assert "weights in it cannot be read (it is a named pipe, not a regular file)" == problem


@pytest.mark.parametrize("claimed", ["progress/events.jsonl", "progress", "../theirs", "link/theirs"])
def test_what_a_record_calls_a_checkpoint_and_is_none_is_not_quarantined(folder, tmp_path, claimed):
    folder.events.write_text("events")
    (tmp_path / "theirs").write_text("theirs")
    (folder.root / "link").symlink_to(tmp_path)

    assert None is quarantine(folder.root / claimed, folder, STAMP, step=5, reason="it is torn")
    assert "events" == folder.events.read_text()
    assert "theirs" == (tmp_path / "theirs").read_text()


def test_a_quarantine_that_is_a_link_gets_nothing(folder, saved, tmp_path):
    saved(5)
    (tmp_path / "theirs").mkdir()
    folder.quarantine.symlink_to(tmp_path / "theirs")

    with pytest.raises(StorageUnwritable, match="it is a link"):
        quarantine(folder.root / "checkpoint_5", folder, STAMP, step=5, reason="it is torn")
