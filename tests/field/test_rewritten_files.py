"""A tool has rewritten, emptied or moved the files of a run; no start takes it for a fresh one."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from crashproof import ProgressTracker, RunReader, get_recovery_checkpoint
from crashproof.errors import RecordsLost
from crashproof.reading.session_follower import SessionFollower
from crashproof.tracking.adopt import adopt_checkpoints
from crashproof.tracking.repair import repair_run

OpenTracker = Callable[..., ProgressTracker]
STEPS = list(range(1, 7))


@pytest.fixture
def run(
    open_tracker: OpenTracker, update: Callable[..., None], save_checkpoint: Callable[..., Path], run_dir: Path
) -> Path:
    """Six steps, checkpoints at 3 and 6, a paid answer; closed."""
    tracker = open_tracker()
    tracker.record_api_response("key", {"text": "paid\r\n"}, 0.5)
    for step in STEPS:
        update(tracker, step)
        if step % 3 == 0:
            save_checkpoint(tracker, step)
    tracker.close()
    return run_dir


def rewrite(run: Path, change: Callable[[bytes], bytes], pattern: str = "*.json*") -> None:
    for path in (run / "progress").glob(pattern):
        path.write_bytes(change(path.read_bytes()))


def indented(content: bytes) -> bytes:
    """As a formatter writes JSON that leaves numbers as they are."""
    texts: list[str] = []

    def number(digits: str) -> str:
        texts.append(digits)
        return f"@{len(texts) - 1}@"

    lines = [json.loads(line, parse_float=number, parse_int=number) for line in content.decode().splitlines()]
    text = "".join(json.dumps(each, indent=2, ensure_ascii=False) + "\n" for each in lines)
    for index, digits in enumerate(texts):
        text = text.replace(f'"@{index}@"', digits)
    return text.encode()


REFORMATTED = {
    "carriage returns before newlines": lambda content: content.replace(b"\n", b"\r\n"),
    "carriage returns for newlines": lambda content: content.replace(b"\n", b"\r"),
    "a byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "a byte order mark and carriage returns": lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"),
    "no last newline": lambda content: content[:-1],
    "two last newlines": lambda content: content + b"\n",
    "blank lines between": lambda content: content.replace(b"\n", b"\n\n"),
    "blanks behind each line": lambda content: content.replace(b"\n", b" \t\n"),
    "blanks before each line": lambda content: b"  " + content.replace(b"\n", b"\n  "),
    "all on one line": lambda content: content.replace(b"\n", b" "),
    "indented": indented,
}


@pytest.mark.parametrize("change", REFORMATTED.values(), ids=REFORMATTED)
def test_readers_take_what_only_white_space_has_changed_in(run: Path, change: Callable[[bytes], bytes]) -> None:
    rewrite(run, change)
    reader = RunReader.open(run)

    assert (run / "checkpoint_6.pt", 48) == get_recovery_checkpoint(run)
    assert STEPS == [line.step for line in reader.history()]
    follower = SessionFollower(reader.folder)
    assert [6, 6] == [follower.session().steps_completed for _ in range(2)]
    assert [] == reader.problems()


@pytest.mark.parametrize("change", REFORMATTED.values(), ids=REFORMATTED)
def test_the_next_start_writes_reformatted_records_as_they_were(
    run: Path, change: Callable[[bytes], bytes], open_tracker: OpenTracker, update: Callable[..., None]
) -> None:
    rewrite(run, change)
    tracker = open_tracker()
    offered = tracker.get_recovery_checkpoint()
    update(tracker, 7)
    answer = tracker.get_api_response("key")
    tracker.close()

    assert offered is not None
    assert (6, {"text": "paid\r\n"}) == (offered.checkpoint_step, answer)
    assert [*STEPS, 7] == [line.step for line in RunReader.open(run).history()]
    assert 0 == RunReader.open(run).session().damage_found
    assert [] == RunReader.open(run).problems()


def test_the_next_start_says_which_journals_were_reformatted(
    run: Path, open_tracker: OpenTracker, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(run, REFORMATTED["carriage returns before newlines"], "metrics.jsonl")
    open_tracker()

    (said,) = [each for each in caplog.messages if "Another program has rewritten" in each]
    assert f"{run / 'progress' / 'metrics.jsonl'}: white space around 6 records" in said


def test_a_repair_writes_reformatted_records_as_they_were(run: Path) -> None:
    before = (run / "progress" / "metrics.jsonl").read_bytes()
    rewrite(run, REFORMATTED["carriage returns before newlines"])

    assert [] == repair_run(RunReader.open(run).folder)
    assert before == (run / "progress" / "metrics.jsonl").read_bytes()


DAMAGED = {
    "emptied": lambda content: b"",
    "filled with zeros": lambda content: b"\0" * len(content),
    "written as UTF-16": lambda content: content.decode().encode("utf-16"),
    "compressed": gzip.compress,
    "parsed and written again": lambda content: content.replace(b'"v":1', b'"v":1.0'),
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED)
def test_a_run_of_which_nothing_can_be_read_is_an_error_and_no_fresh_start(
    run: Path, change: Callable[[bytes], bytes], open_tracker: OpenTracker
) -> None:
    rewrite(run, change)

    with pytest.raises(RecordsLost, match=r"records are lost.*progress/events\.jsonl: its? .*crashproof adopt"):
        get_recovery_checkpoint(run)
    with pytest.raises(RecordsLost, match=r"fresh=True"):
        open_tracker()
    with pytest.raises(RecordsLost):
        RunReader.open(run).session()
    assert b"weights of step 6" == (run / "checkpoint_6.pt").read_bytes()


@pytest.mark.parametrize("change", [DAMAGED["emptied"], DAMAGED["filled with zeros"]], ids=["emptied", "zeros"])
def test_journals_lost_to_a_power_cut_leave_the_checkpoints_that_snapshots_name(
    run: Path, change: Callable[[bytes], bytes], open_tracker: OpenTracker
) -> None:
    rewrite(run, change, "*.jsonl")

    assert (run / "checkpoint_6.pt", 48) == get_recovery_checkpoint(run)
    offered = open_tracker().get_recovery_checkpoint()
    assert offered is not None
    assert 6 == offered.checkpoint_step


def test_zeros_at_the_end_of_a_journal_cost_no_record(run: Path, open_tracker: OpenTracker) -> None:
    rewrite(run, lambda content: content + b"\0" * 4096, "*.jsonl")

    assert STEPS == [line.step for line in RunReader.open(run).history()]
    open_tracker().close()
    assert [] == RunReader.open(run).problems()


@pytest.mark.parametrize(
    "lose",
    [
        lambda progress: shutil.rmtree(progress),
        lambda progress: progress.rename(progress.with_name("old")),
        lambda progress: [each.unlink() for each in progress.iterdir()],
        lambda progress: [each.unlink() for each in progress.glob("*.json*")],
        lambda progress: [
            each.unlink() if each.suffix == ".json" else each.write_bytes(b"") for each in progress.glob("*.json*")
        ],
    ],
    ids=["removed", "renamed", "emptied", "without journals and snapshots", "with empty journals alone"],
)
def test_checkpoints_beside_a_lost_progress_folder_are_no_fresh_start(
    run: Path, lose: Callable[[Path], object], open_tracker: OpenTracker
) -> None:
    lose(run / "progress")
    for path in run.glob("checkpoint_*"):
        os.utime(path, (0, 0))

    with pytest.raises(RecordsLost, match=r"checkpoint_3\.pt: no record of it can be read; checkpoint_6\.pt"):
        get_recovery_checkpoint(run)
    for _ in range(2):
        tracker = open_tracker()
        with pytest.raises(RecordsLost, match=r"checkpoint_6\.pt"):
            tracker.get_recovery_checkpoint()
        tracker.close()
    with pytest.raises(RecordsLost, match=r"checkpoint_6\.pt"):
        get_recovery_checkpoint(run)


def test_a_loop_that_resumes_by_itself_from_checkpoints_of_its_own_is_warned_and_goes_on(
    run_dir: Path, open_tracker: OpenTracker, update: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    run_dir.mkdir()
    (run_dir / "checkpoint_40.pt").write_bytes(b"weights")
    tracker = open_tracker()
    update(tracker, 41)
    tracker.record_checkpoint(40, run_dir / "checkpoint_40.pt", 320)

    assert any("checkpoint_40.pt: no record" in each for each in caplog.messages)
    offered = tracker.get_recovery_checkpoint()
    assert offered is not None
    assert 40 == offered.checkpoint_step


def test_a_checkpoint_that_a_kill_kept_from_being_recorded_is_no_lost_record(
    run_dir: Path, open_tracker: OpenTracker
) -> None:
    tracker = open_tracker()
    (run_dir / "checkpoint_1.pt").write_bytes(b"weights")
    tracker.close()

    assert None is get_recovery_checkpoint(run_dir)
    assert None is open_tracker().get_recovery_checkpoint()


def test_a_progress_folder_on_a_disk_that_is_not_mounted_is_no_fresh_start(run: Path) -> None:
    (run / "progress").rename(run.parent / "scratch")
    (run / "progress").symlink_to(run.parent / "not mounted")

    with pytest.raises(RecordsLost, match="progress: it is a link that leads nowhere"):
        get_recovery_checkpoint(run)


def test_events_alone_lost_with_all_snapshots_are_no_fresh_start(run: Path, open_tracker: OpenTracker) -> None:
    for name in ("events.jsonl", "session.json", "checkpoints.json"):
        (run / "progress" / name).unlink()

    with pytest.raises(RecordsLost, match=r"metrics\.jsonl: the events that belong to it are lost"):
        get_recovery_checkpoint(run)
    with pytest.raises(RecordsLost):
        open_tracker()
    assert STEPS == [line.step for line in RunReader.open(run).history()]


def test_checkpoints_whose_records_are_lost_can_be_adopted(run: Path, open_tracker: OpenTracker) -> None:
    rewrite(run, DAMAGED["filled with zeros"])
    adopt_checkpoints(run, samples_per_step=8)

    assert (run / "checkpoint_6.pt", 48) == get_recovery_checkpoint(run)
    offered = open_tracker().get_recovery_checkpoint()
    assert offered is not None
    assert 6 == offered.checkpoint_step


def test_a_fresh_start_on_request_moves_what_is_left_to_the_archive(run: Path, open_tracker: OpenTracker) -> None:
    rewrite(run, DAMAGED["filled with zeros"])
    tracker = open_tracker(fresh=True)
    lost = run / "progress" / "archive" / "lost"

    assert None is tracker.get_recovery_checkpoint()
    assert b"weights of step 6" == (lost / "checkpoints" / "checkpoint_6.pt").read_bytes()
    assert (lost / "events.jsonl").exists()
    assert [] == list(run.glob("checkpoint_*"))


def test_a_first_start_that_was_cut_off_is_a_fresh_one(run_dir: Path, open_tracker: OpenTracker) -> None:
    (run_dir / "progress").mkdir(parents=True)
    (run_dir / "progress" / "events.jsonl").write_bytes(b"\0" * 300)
    (run_dir / "progress" / "metrics.jsonl").touch()

    assert None is get_recovery_checkpoint(run_dir)
    assert None is open_tracker().get_recovery_checkpoint()


def test_a_checkpoint_of_another_name_beside_is_a_fresh_start(run_dir: Path, open_tracker: OpenTracker) -> None:
    run_dir.mkdir()
    for name in ("pretrained.pt", "model.safetensors", "checkpoint_best.pt"):
        (run_dir / name).write_bytes(b"weights")

    assert None is get_recovery_checkpoint(run_dir)
    assert None is open_tracker().get_recovery_checkpoint()


def test_a_copy_appended_to_the_original_changes_nothing(run: Path, open_tracker: OpenTracker) -> None:
    rewrite(run, lambda content: content * 2, "*.jsonl")

    assert (run / "checkpoint_6.pt", 48) == get_recovery_checkpoint(run)
    open_tracker().close()
    assert STEPS == [line.step for line in RunReader.open(run).history()]


def test_markers_of_a_merge_conflict_are_named_and_quarantined(run: Path, open_tracker: OpenTracker) -> None:
    rewrite(run, lambda content: b"<<<<<<< HEAD\n%b=======\n%b>>>>>>> main\n" % (content, content), "*.jsonl")

    assert any("a marker of a merge conflict" in each for each in RunReader.open(run).problems())
    open_tracker().close()
    assert [] == RunReader.open(run).problems()
    assert STEPS == [line.step for line in RunReader.open(run).history()]


def test_sorted_journals_still_lead_to_the_newest_checkpoint(run: Path) -> None:
    rewrite(run, lambda content: b"".join(sorted(content.splitlines(keepends=True))), "*.jsonl")

    assert (run / "checkpoint_6.pt", 48) == get_recovery_checkpoint(run)


def test_copies_of_a_sync_client_beside_the_journals_are_not_read(run: Path) -> None:
    for path in list((run / "progress").glob("*.json*")):
        shutil.copy(path, path.with_name(f"{path.stem}.sync-conflict-20310101{path.suffix}"))

    assert (run / "checkpoint_6.pt", 48) == get_recovery_checkpoint(run)
    assert STEPS == [line.step for line in RunReader.open(run).history()]
