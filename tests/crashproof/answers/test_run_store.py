"""What is special to the run's own store; what every store does is tested in `teacher/test_response_stores.py`."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from response_stores import CENT, answered, granted, intent, keep, key_of

from crashproof import ProgressTracker, RunReader
from crashproof.answers.answer_journal import AnswerJournal
from crashproof.answers.run_store import RunResponses
from crashproof.answers.store import Busy, Granted, Intent, Lost, OverBudget, Refused
from crashproof.disk.files import Disk
from crashproof.disk.journal import Journal
from crashproof.disk.queueing_journal import QueueingJournal
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import DiskFull, InvalidMetric, RunClosed
from crashproof.reading.run_state import read_run
from crashproof.records.events import DamageFound
from crashproof.records.requests import AnswerRecord, RequestLost, RequestRefused, RequestSent
from crashproof.records.session import TrainingSession
from crashproof.records.snapshots import JournalMark
from crashproof.testing import FaultyDisk, PowerLost, forget_open_runs
from crashproof.tracking.repair import repair_run

OTHER_CONFIG = {"train": {"lr": 7}}


class QuotaDisk(Disk):
    """So many bytes and no more; what is removed can be written again."""

    def __init__(self, free: int) -> None:
        self.free = free

    def write(self, file: int, content: bytes | memoryview) -> int:  # type: ignore[override]
        self._take(len(content))
        return os.write(file, content)

    def allocate(self, file: int, num_bytes: int) -> None:
        self._take(num_bytes - os.fstat(file).st_size)
        super().allocate(file, num_bytes)

    def remove_file(self, path: Path) -> None:
        if path.exists():
            self.free += path.stat().st_size
        super().remove_file(path)

    def replace(self, source: Path, target: Path) -> None:
        if target.is_file():
            self.free += target.stat().st_size
        super().replace(source, target)

    def _take(self, num_bytes: int) -> None:
        if num_bytes > self.free:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.free -= num_bytes


class SwitchableDisk(Disk):
    """Refuses to sync, or to write into one file, while told to."""

    def __init__(self) -> None:
        self.sync_error: int | None = None
        self.unwritable: Path | None = None

    def sync(self, file: int) -> None:
        if self.sync_error is not None:
            raise OSError(self.sync_error, "made to fail")
        super().sync(file)

    def write(self, file: int, content: bytes | memoryview) -> int:  # type: ignore[override]
        if self.unwritable is not None and os.path.samestat(os.fstat(file), self.unwritable.stat()):
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(file, content)


@pytest.fixture
def folder(run_dir: Path) -> RunFolder:
    return RunFolder.under(run_dir)


@pytest.fixture
def disk() -> SwitchableDisk:
    return SwitchableDisk()


def rebuilt(folder: RunFolder) -> TrainingSession:
    """The session as its journals alone tell it."""
    session = read_run(folder, trust_snapshot=False).session
    assert session is not None
    return session


def as_builtins(session: TrainingSession) -> Any:
    return msgspec.to_builtins(session)


def lines_about_requests(folder: RunFolder, read_lines) -> list[str]:
    return [line["event"] for line in read_lines(folder.requests)]


# What is on disk, and when.


def test_an_intent_is_on_disk_before_anybody_may_send_it(open_tracker, run_dir, tmp_path):
    run_dir.mkdir()
    disk = FaultyDisk(run_dir, tmp_path / "scratch")
    store = open_tracker(disk=disk).responses
    request = granted(store, "a", most=CENT)
    disk.after_power_loss(tmp_path / "left", "strict")

    (line,) = (tmp_path / "left" / "progress" / "api_requests.jsonl").read_bytes().splitlines()
    said = msgspec.json.decode(line, type=RequestSent)
    assert (request.request_id, request.request.key, "m", CENT) == (
        said.request_id,
        said.prompt_hash,
        said.model,
        said.most,
    )


def test_an_answer_is_on_disk_with_its_question_when_it_is_kept(open_tracker, run_dir, tmp_path):
    run_dir.mkdir()
    disk = FaultyDisk(run_dir, tmp_path / "scratch")
    tracker = open_tracker(disk=disk)
    keep(tracker.responses, "a")
    disk.after_power_loss(tmp_path / "left", "strict")
    forget_open_runs()

    store = open_tracker(output_dir=tmp_path / "left").responses
    found = store.read(key_of("a"))
    assert ({"text": "about a"}, intent("a").request.as_record()) == (found.response, found.request)
    assert (CENT / 2, 0) == (store.spending().committed, store.spending().requests_in_doubt)


def asked_and_kept(open_tracker, run: Path, disk: Disk) -> list[str]:
    """What was promised before the power went off, if it did."""
    promised: list[str] = []
    try:
        store = open_tracker(output_dir=run, disk=disk).responses
        request = granted(store, "a", most=CENT)
        promised.append("it may be sent")
        store.finish([answered(request, CENT / 2)])
        promised.append("it is kept")
    except PowerLost:
        pass
    forget_open_runs()
    return promised


@pytest.mark.parametrize("world", FaultyDisk.WORLDS)
def test_wherever_the_power_goes_off_an_answer_is_kept_or_its_request_is_in_doubt(
    open_tracker, tmp_path, left_by_a_kill, world
):
    """Between the append and the sync too: the money is never forgotten, and the answer never half there."""
    open_tracker(output_dir=tmp_path / "ended").close()
    run = left_by_a_kill(tmp_path / "ended")
    counting = FaultyDisk(run, tmp_path / "scratch")
    assert ["it may be sent", "it is kept"] == asked_and_kept(open_tracker, run, counting)
    seen = set()
    for number in range(counting.num_operations):
        run, left = left_by_a_kill(tmp_path / "ended"), tmp_path / f"after_{number}"
        disk = FaultyDisk(run, tmp_path / f"scratch_{number}", fails_at=number)
        promised = asked_and_kept(open_tracker, run, disk)
        disk.after_power_loss(left, world, seed=number)
        reopened = open_tracker(output_dir=left)
        spending, found = reopened.responses.spending(), reopened.responses.read(key_of("a"))
        reopened.close()
        seen.add(len(promised))

        assert found is not None or "it is kept" not in promised
        if "it may be sent" in promised:
            assert (CENT / 2 if found else CENT) == spending.committed
        assert [] == RunReader.open(left).problems()
    assert {0, 1} == seen


# The index.


def indexed(open_tracker, num_answers: int = 3) -> None:
    tracker = open_tracker()
    for number in range(num_answers):
        keep(tracker.responses, number)
    tracker.close()


def all_found(open_tracker, num_answers: int = 3) -> list[str | None]:
    store = open_tracker().responses
    found = [store.read(key_of(number)) for number in range(num_answers)]
    return [None if each is None else each.response["text"] for each in found]


ALL_THREE = ["about 0", "about 1", "about 2"]


def test_the_index_is_written_at_the_end_and_read_at_the_start(open_tracker, folder):
    indexed(open_tracker)
    written = folder.answer_index.read_bytes()

    assert ALL_THREE == all_found(open_tracker)
    assert written == folder.answer_index.read_bytes()


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1]), id="cut off"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), id="rotten"),
        pytest.param(lambda path: path.write_bytes(b"{}\n"), id="something else"),
    ],
)
def test_an_index_that_is_no_good_is_made_again(open_tracker, folder, spoil):
    indexed(open_tracker)
    whole = folder.answer_index.read_bytes()
    spoil(folder.answer_index)

    assert ALL_THREE == all_found(open_tracker)
    open_tracker().close()
    assert ALL_THREE == all_found(open_tracker)
    tracker = open_tracker()
    keep(tracker.responses, "one more")
    tracker.close()
    assert len(folder.answer_index.read_bytes()) > len(whole)


def test_answers_behind_an_old_index_are_found(open_tracker, folder):
    indexed(open_tracker, 1)
    old = folder.answer_index.read_bytes()
    store = open_tracker().responses
    keep(store, 1)
    keep(store, 2)
    forget_open_runs()

    assert old == folder.answer_index.read_bytes()
    assert ALL_THREE == all_found(open_tracker)


def test_an_index_of_another_journal_is_not_believed(open_tracker, folder, tmp_path):
    other = tmp_path / "other"
    tracker = open_tracker(output_dir=other)
    for number in (7, 8, 9):
        keep(tracker.responses, number)
    tracker.close()
    indexed(open_tracker)
    folder.answer_index.write_bytes(RunFolder.under(other).answer_index.read_bytes())

    assert ALL_THREE == all_found(open_tracker)
    assert open_tracker().responses.read(key_of(7)) is None


def test_an_index_that_points_beyond_a_journal_cut_short_is_not_believed(open_tracker, folder):
    indexed(open_tracker)
    lines = folder.answers.read_bytes().splitlines(keepends=True)
    folder.answers.write_bytes(lines[0])

    assert ["about 0", None, None] == all_found(open_tracker)


class WatchedJournal(QueueingJournal):
    """Does something right behind a line that was written."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self.after_append: Callable[[], None] = lambda: None

    def append_now(self, line: bytes) -> int:
        offset = super().append_now(line)
        self.after_append()
        return offset


def test_an_answer_written_while_the_index_is_saved_is_not_lost_by_a_kill(tmp_path, open_tracker, folder):
    """Right between the write and what the store notes of it: the index must not claim to know the line."""
    keep(open_tracker().responses, "a", "b")
    first, second = map(msgspec.json.Decoder(AnswerRecord).decode, folder.answers.read_bytes().splitlines())
    new = RunFolder(tmp_path / "new")
    new.progress.mkdir()
    journal = WatchedJournal(Journal(new.answers, mark=JournalMark()))
    answers = AnswerJournal(journal, new)
    answers.publish([answers.append(first)])
    saving = threading.Thread(target=answers.save_index)

    def save_beside() -> None:
        saving.start()
        saving.join(0.2)

    journal.after_append = save_beside
    answers.append(second)
    saving.join()
    journal.journal.close()

    successor = Journal(new.answers, mark=JournalMark())
    assert new.answer_index.exists()
    assert {"text": "about b"} == AnswerJournal(QueueingJournal(successor), new).get(second.prompt_hash).response
    successor.close()


def test_the_index_says_nothing_of_a_line_that_is_written_and_not_yet_durable(
    open_tracker, disk, left_by_a_kill, run_dir
):
    tracker = open_tracker(disk=disk)
    keep(tracker.responses, 0)
    request = granted(tracker.responses, 1)
    disk.sync_error = errno.EIO
    with pytest.raises(OSError, match="made to fail"):
        tracker.responses.finish([answered(request)])
    disk.sync_error = None
    tracker.responses.save_index()
    left = left_by_a_kill(run_dir)

    assert "about 1" == open_tracker(output_dir=left).responses.read(key_of(1)).response["text"]


# A full disk.


def test_an_answer_that_is_paid_for_takes_the_space_that_was_held_for_it(open_tracker, folder, caplog):
    disk = QuotaDisk(free=10 << 20)
    tracker = open_tracker(disk=disk)
    request = granted(tracker.responses, "a")
    held = folder.reserved_space.stat().st_size
    disk.free = 0

    tracker.responses.finish([answered(request, response={"text": "x" * 200_000})])

    assert held >= 256 << 10
    assert "x" * 200_000 == tracker.responses.read(key_of("a")).response["text"]
    assert any("using reserved space" in message for message in caplog.messages)
    disk.free = 10 << 20


def test_all_that_are_under_way_are_kept_when_the_disk_fills_up(open_tracker, folder):
    disk = QuotaDisk(free=10 << 20)
    store = open_tracker(disk=disk).responses
    requests = [granted(store, number) for number in range(8)]
    disk.free = 0

    for request in requests:
        store.finish([answered(request, response={"text": "x" * 100_000})])

    assert all(store.read(key_of(number)) is not None for number in range(8))
    disk.free = 10 << 20


def test_twice_the_longest_answer_so_far_is_held_for_the_next(open_tracker, folder):
    store = open_tracker().responses
    keep(store, "short")
    first = folder.reserved_space.stat().st_size
    store.finish([answered(granted(store, "long"), response={"text": "x" * 400_000})])
    granted(store, "next")

    assert 256 << 10 == first
    assert folder.reserved_space.stat().st_size >= 2 * 400_000


def test_without_space_for_its_answer_nothing_is_sent(open_tracker, folder, read_lines):
    disk = QuotaDisk(free=10 << 20)
    tracker = open_tracker(disk=disk)
    disk.free = 100_000

    with pytest.raises(DiskFull):
        tracker.responses.begin([intent("a")], budget=None)

    assert [] == lines_about_requests(folder, read_lines)
    disk.free = 10 << 20
    assert isinstance(granted(tracker.responses, "a"), Granted)


def test_what_was_granted_before_the_disk_was_full_is_taken_back(open_tracker, folder, read_lines):
    """Of several intents at once: none is sent, so none may stay under way."""
    disk = QuotaDisk(free=10 << 20)
    tracker = open_tracker(disk=disk)
    # Space for three answers, and for the lines of two intents.
    disk.free = (3 * 256 << 10) + 700

    with pytest.raises(DiskFull):
        tracker.responses.begin([intent(each) for each in ("a", "b", "c")], budget=None)
    disk.free = 10 << 20
    tracker.save()

    assert ["request_sent"] * 2 + ["request_refused"] * 2 == lines_about_requests(folder, read_lines)
    assert 0 == tracker.responses.spending().committed
    assert isinstance(granted(tracker.responses, "a"), Granted)


def test_an_intent_that_could_not_be_made_durable_is_taken_back(open_tracker, disk, folder, read_lines):
    tracker = open_tracker(disk=disk)
    disk.sync_error = errno.EIO
    with pytest.raises(OSError, match="made to fail"):
        tracker.responses.begin([intent("a")], budget=None)
    disk.sync_error = None

    assert ["request_sent", "request_refused"] == lines_about_requests(folder, read_lines)
    assert 0 == tracker.responses.spending().committed
    assert isinstance(granted(tracker.responses, "a"), Granted)


def test_an_end_without_an_answer_waits_for_space_and_training_goes_on(open_tracker, disk, folder, read_lines):
    tracker = open_tracker(disk=disk)
    request = granted(tracker.responses, "a")
    disk.unwritable = folder.requests
    tracker.responses.finish([Lost(granted=request, reason="it broke")])
    waiting = tracker.get_progress_summary()["lines_waiting"]
    disk.unwritable = None
    tracker.save()

    assert (1, 0) == (waiting, tracker.get_progress_summary()["lines_waiting"])
    assert ["request_sent", "request_lost"] == lines_about_requests(folder, read_lines)


def test_an_answer_that_no_space_is_left_for_is_kept_before_the_next_request_is_sent(open_tracker, disk, folder):
    tracker = open_tracker(disk=disk)
    request = granted(tracker.responses, "a")
    disk.unwritable = folder.answers
    with pytest.raises(DiskFull):
        tracker.responses.finish([answered(request)])
    with pytest.raises(DiskFull):
        tracker.responses.begin([intent("b")], budget=None)
    disk.unwritable = None

    (served, other) = tracker.responses.begin([intent("a"), intent("b")], budget=None)
    assert {"text": "about a"} == served.response
    assert isinstance(other, Granted)
    assert 1 == tracker.responses.spending().answers


def test_finishing_again_after_a_full_disk_keeps_everything_once(open_tracker, disk, folder):
    tracker = open_tracker(disk=disk)
    ends = [
        answered(granted(tracker.responses, "a")),
        Lost(granted=granted(tracker.responses, "b"), reason="it broke"),
        answered(granted(tracker.responses, "c")),
    ]
    disk.unwritable = folder.answers
    for _ in range(3):
        with pytest.raises(DiskFull):
            tracker.responses.finish(ends)
    disk.unwritable = None
    for _ in range(2):
        tracker.responses.finish(ends)

    spending = tracker.responses.spending()
    assert (2, CENT, 1, CENT, 0) == (
        spending.answers,
        spending.spent,
        spending.requests_in_doubt,
        spending.in_doubt,
        spending.reserved,
    )
    assert 2 == len(folder.answers.read_bytes().splitlines())
    tracker.save()
    assert as_builtins(rebuilt(folder)) == as_builtins(tracker.session)


def test_a_disk_that_could_not_sync_an_answer_is_asked_again(open_tracker, disk, folder):
    tracker = open_tracker(disk=disk)
    end = answered(granted(tracker.responses, "a"))
    disk.sync_error = errno.EIO
    with pytest.raises(OSError, match="made to fail"):
        tracker.responses.finish([end])
    disk.sync_error = None
    tracker.responses.finish([end])

    assert "about a" == tracker.responses.read(key_of("a")).response["text"]
    assert 1 == len(folder.answers.read_bytes().splitlines())


def test_an_answer_that_is_not_durable_is_given_to_nobody(open_tracker, disk):
    tracker = open_tracker(disk=disk)
    request = granted(tracker.responses, "a")
    disk.sync_error = errno.EIO
    with pytest.raises(OSError, match="made to fail"):
        tracker.responses.finish([answered(request)])

    assert tracker.responses.serve(key_of("a")) is None
    disk.sync_error = None


def test_the_space_is_let_go_at_the_end(open_tracker, folder):
    tracker = open_tracker()
    granted(tracker.responses, "a")
    tracker.close()

    assert not folder.reserved_space.exists()


def test_what_a_killed_run_held_is_let_go_by_the_next(open_tracker, folder):
    granted(open_tracker().responses, "a")
    forget_open_runs()
    left = folder.reserved_space.exists()
    open_tracker().close()

    assert (True, False) == (left, folder.reserved_space.exists())


# Money.


def test_archived_sessions_keep_counting_toward_a_budget(open_tracker, clock):
    first = open_tracker().responses
    keep(first, "a", cost=Decimal("0.004"))
    first.finish([Lost(granted=granted(first, "lost", most=Decimal("0.010")), reason="it broke")])
    granted(first, "open", most=Decimal("0.020"))
    forget_open_runs()
    open_tracker(OTHER_CONFIG).close()
    third = open_tracker({"train": {"lr": 8}}).responses

    assert Decimal("0.034") == third.spending().spent_before == third.spending().committed
    (verdict,) = third.begin([intent("b", most=Decimal("0.007"))], budget=Decimal("0.04"))
    assert isinstance(verdict, OverBudget)
    assert not verdict.may_change
    assert isinstance(granted(third, "b", most=Decimal("0.006"), budget=Decimal("0.04")), Granted)


def test_an_archived_sessions_answers_are_served_and_cost_nothing_again(open_tracker):
    keep(open_tracker().responses, "a", cost=Decimal("0.004"))
    store = open_tracker(OTHER_CONFIG).responses

    (verdict,) = store.begin([intent("a")], budget=Decimal("0.004"))
    assert {"text": "about a"} == verdict.response
    assert (1, Decimal("0.004"), 0) == (
        store.spending().answers_served,
        store.spending().saved,
        store.spending().spent,
    )


@pytest.mark.parametrize(
    "lost", [["session.json"], ["events.jsonl"], ["events.jsonl", "session.json"]], ids=lambda names: "+".join(names)
)
def test_money_spent_before_is_not_forgotten_with_a_file(open_tracker, folder, lost):
    keep(open_tracker().responses, "a", cost=Decimal("0.004"))
    second = open_tracker(OTHER_CONFIG)
    keep(second.responses, "b", cost=Decimal("0.003"))
    second.close()
    for name in lost:
        (folder.progress / name).unlink()

    assert Decimal("0.007") == open_tracker(OTHER_CONFIG).responses.spending().committed


def test_what_an_attempt_left_under_way_is_in_doubt_for_the_next_and_may_be_sent_again(open_tracker):
    granted(open_tracker().responses, "a", most=CENT)
    forget_open_runs()
    store = open_tracker().responses

    before = store.spending()
    assert (1, CENT, 0) == (before.requests_in_doubt, before.in_doubt, before.reserved)
    (refused,) = store.begin([intent("a", most=CENT)], budget=2 * CENT - Decimal("0.001"))
    assert isinstance(refused, OverBudget)
    assert isinstance(granted(store, "a", most=CENT, budget=2 * CENT), Granted)


def test_a_request_under_way_is_not_begun_again_in_the_same_process(open_tracker):
    store = open_tracker().responses
    granted(store, "a")

    assert [Busy, Granted] == [type(each) for each in store.begin([intent("a"), intent("b")], budget=None)]


def test_an_answer_of_no_use_may_be_asked_for_once_more_and_the_newest_counts(open_tracker):
    store = open_tracker().responses
    store.finish([answered(granted(store, "a"), problem="no JSON", response={})])
    again = Intent(request=intent("a").request, most=CENT, replaces=True)
    (request,) = store.begin([again], budget=None)
    store.finish([answered(request)])
    forget_open_runs()

    found = open_tracker().responses.read(key_of("a"))
    assert ("about a", msgspec.UNSET) == (found.response["text"], found.problem)


def test_an_answer_that_is_of_use_is_not_replaced(open_tracker):
    """Whoever wanted another one is given what somebody else has got in the meantime."""
    store = open_tracker().responses
    keep(store, "a")
    again = Intent(request=intent("a").request, most=CENT, replaces=True)

    (good,) = store.begin([again], budget=None)
    store.mark(key_of("a"), "too short")
    (verdict,) = store.begin([again], budget=None)
    assert "about a" == good.response["text"]
    assert isinstance(verdict, Granted)


def do_everything(tracker: ProgressTracker, name: str = "") -> None:
    """Every way in which a request can begin and end, in one attempt."""
    store = tracker.responses
    keep(store, f"answered {name}", cost=Decimal("0.003"))
    store.finish([answered(granted(store, f"bad {name}"), Decimal("0.002"), problem="no JSON", raw="<html>")])
    store.finish([Refused(granted=granted(store, f"refused {name}"), reason="HTTP 400")])
    store.finish([Lost(granted=granted(store, f"lost {name}", most=Decimal("0.05")), reason="it broke")])
    granted(store, f"open {name}", most=Decimal("0.07"))
    store.mark(key_of(f"answered {name}"), "too short")
    store.mark(key_of(f"answered {name}"), "too short")
    store.serve(key_of(f"answered {name}"))
    tracker.record_api_response("own", {"text": "x", "logprob": float("-inf")}, 0.25)
    tracker.get_api_response("own")
    tracker.record_connection_failure(1, "it broke")


def test_a_session_is_the_same_lived_and_read_from_its_journals(open_tracker, folder, update):
    for attempt in range(3):
        tracker = open_tracker()
        update(tracker, attempt + 1)
        do_everything(tracker, str(attempt))
        lived = as_builtins(tracker.session)
        assert lived == as_builtins(rebuilt(folder))
        tracker.save()
        assert lived == as_builtins(read_run(folder).session)
        forget_open_runs()


def test_what_is_told_to_watchers_is_what_was_spent(open_tracker, read_json, folder):
    tracker = open_tracker()
    do_everything(tracker)
    tracker.save()

    told = read_json(folder.summary)
    expected = {
        "api_responses_saved": 3,
        "api_responses_recovered": 2,
        "api_responses_bad": 2,
        "api_requests_in_doubt": 1,
        "api_cost": 0.255,
        "api_cost_before": 0.0,
        "api_cost_saved": 0.253,
        "api_cost_in_doubt": 0.05,
        "api_cost_reserved": 0.07,
        "api_cost_wasted": 0.005,
    }
    assert expected == {name: told[name] for name in expected}
    assert expected == {name: RunReader(folder).summary(now=0.0)[name] for name in expected}


def test_lines_of_requests_name_their_session_and_their_attempt(open_tracker, folder, read_lines):
    open_tracker().close()
    tracker = open_tracker()
    do_everything(tracker)

    assert {(tracker.session.session_id, 2)} == {
        (line["session_id"], line["attempt"]) for line in read_lines(folder.requests) + read_lines(folder.answers)
    }
    assert {"request_sent": 5, "request_refused": 1, "request_lost": 1, "answer_marked": 1} == {
        event: lines_about_requests(folder, read_lines).count(event)
        for event in lines_about_requests(folder, read_lines)
    }


# Damage.


def damage(path: Path, text: bytes) -> None:
    """Flip a bit within the line that holds a text."""
    content = path.read_bytes()
    place = content.index(text)
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


def damages_told(folder: RunFolder) -> list[DamageFound]:
    return [event for event in RunReader(folder).events() if isinstance(event, DamageFound)]


def test_a_damaged_answer_is_set_aside_with_its_price_when_the_run_is_opened(open_tracker, folder):
    store = open_tracker().responses
    keep(store, "a", cost=Decimal("0.003"))
    keep(store, "b", cost=Decimal("0.004"))
    forget_open_runs()
    folder.session.unlink()
    damage(folder.answers, b"about a")
    tracker = open_tracker()

    (told,) = damages_told(folder)
    assert ("api_recovery.jsonl", Decimal("0.003")) == (told.file, told.cost)
    assert Decimal("0.003") == tracker.responses.spending().wasted
    assert (None, "about b") == (
        tracker.responses.read(key_of("a")),
        tracker.responses.read(key_of("b")).response["text"],
    )
    assert [] == RunReader(folder).problems()


def test_the_money_of_a_damaged_answer_is_not_free_to_be_spent_again(open_tracker, folder):
    """Its request has no end any more: it is in doubt, at its most."""
    keep(open_tracker().responses, "a", cost=Decimal("0.003"))
    forget_open_runs()
    folder.session.unlink()
    damage(folder.answers, b"about a")

    assert open_tracker().responses.spending().committed >= Decimal("0.003")


def test_an_answer_cut_off_by_a_kill_is_in_doubt_and_nothing_of_it_is_given(open_tracker, folder):
    store = open_tracker().responses
    keep(store, "a")
    forget_open_runs()
    folder.answers.write_bytes(folder.answers.read_bytes()[:-20])
    folder.session.unlink()
    store = open_tracker().responses

    assert store.read(key_of("a")) is None
    assert 1 == store.spending().requests_in_doubt
    assert isinstance(granted(store, "a"), Granted)


def test_a_damaged_line_about_a_request_is_set_aside_without_a_price(open_tracker, folder):
    granted(open_tracker().responses, "a")
    forget_open_runs()
    damage(folder.requests, b"request_sent")
    folder.session.unlink()
    tracker = open_tracker()

    assert [("api_requests.jsonl", None)] == [(each.file, each.cost) for each in damages_told(folder)]
    assert [] == RunReader(folder).problems()
    assert isinstance(granted(tracker.responses, "a"), Granted)


def test_repair_says_what_was_paid_for_a_damaged_answer(open_tracker, folder):
    tracker = open_tracker()
    keep(tracker.responses, "a", cost=Decimal("0.003"))
    keep(tracker.responses, "b", cost=Decimal("0.004"))
    tracker.close()
    damage(folder.answers, b"about a")

    (said,) = repair_run(folder)
    assert "api_recovery.jsonl, byte 0" in said
    assert "$0.003 had been paid for it" in said
    assert [Decimal("0.003")] == [each.cost for each in damages_told(folder)]
    assert [] == RunReader(folder).problems()
    store = open_tracker().responses
    assert (None, "about b") == (store.read(key_of("a")), store.read(key_of("b")).response["text"])


def test_a_second_repair_finds_nothing(open_tracker, folder):
    tracker = open_tracker()
    keep(tracker.responses, "a")
    tracker.close()
    damage(folder.answers, b"about a")
    repair_run(folder)
    before = folder.answers.read_bytes()

    assert ([], before) == (repair_run(folder), folder.answers.read_bytes())


def test_an_answer_found_damaged_while_the_run_lives_is_asked_for_again(open_tracker, folder, caplog):
    tracker = open_tracker()
    keep(tracker.responses, "a", cost=Decimal("0.003"))
    damage(folder.answers, b"about a")

    (verdict,) = tracker.responses.begin([intent("a")], budget=None)
    assert isinstance(verdict, Granted)
    assert any("$0.003 was paid" in message for message in caplog.messages)
    tracker.responses.finish([answered(verdict)])
    assert "about a" == tracker.responses.read(key_of("a")).response["text"]


# Who may ask.


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda store: store.serve(key_of("a")), id="serve"),
        pytest.param(lambda store: store.read(key_of("a")), id="read"),
        pytest.param(lambda store: store.begin([intent("b")], budget=None), id="begin"),
        pytest.param(lambda store: store.finish([]), id="finish"),
        pytest.param(lambda store: store.mark(key_of("a"), "bad"), id="mark"),
        pytest.param(lambda store: store.keep("own", {"text": "x"}, Decimal(0)), id="keep"),
    ],
)
def test_a_closed_run_says_so(open_tracker, act):
    tracker = open_tracker()
    keep(tracker.responses, "a")
    tracker.close()

    with pytest.raises(RunClosed):
        act(tracker.responses)
    assert 1 == tracker.responses.spending().answers


def test_an_answer_served_while_the_run_is_closed_is_written_nowhere(open_tracker, folder):
    """It was read before and would be counted after: the journals are closed by then."""
    tracker = open_tracker()
    keep(tracker.responses, "a")
    answer = tracker.responses.read(key_of("a"))
    tracker.close()

    with pytest.raises(RunClosed):
        tracker.responses._count_served(answer)
    assert 0 == tracker.responses.spending().answers_served


def in_a_child(act: Callable[[], bool]) -> int:
    """The exit code of a forked child that does something: 7 where it is as expected."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 7 if act() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_waits_for_no_thread_of_the_parent(open_tracker):
    tracker = open_tracker()
    keep(tracker.responses, "a")
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with tracker._guard.lock:
            taken.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()

    def is_refused() -> bool:
        try:
            tracker.get_api_response(key_of("a"))
        except RunClosed:
            return tracker.get_progress_summary()["api_responses_saved"] == 1
        return False

    code = in_a_child(is_refused)
    done.set()
    holder.join()
    assert 7 == code


def test_a_forked_child_writes_nothing_of_what_its_parent_has_served(open_tracker, folder):
    tracker = open_tracker()
    keep(tracker.responses, "a")
    tracker.responses.serve(key_of("a"))

    def looks() -> bool:
        # Whatever is opened next gets the number of a journal that was closed.
        stranger = os.open(folder.root / "stranger", os.O_RDWR | os.O_CREAT)
        tracker.get_progress_summary()
        tracker.responses.spending()
        return os.fstat(stranger).st_size == 0 and tracker.session.api_responses_recovered == 0

    assert 7 == in_a_child(looks)
    assert 1 == tracker.session.api_responses_recovered
    assert [] == RunReader(folder).problems()


@pytest.mark.parametrize("question", ["bad", "never asked"])
def test_an_answer_that_came_with_a_problem_or_never_came_is_not_marked(open_tracker, folder, read_lines, question):
    store = open_tracker().responses
    store.finish([answered(granted(store, "bad"), problem="no JSON")])
    store.mark(key_of(question), "too short")

    assert "answer_marked" not in lines_about_requests(folder, read_lines)
    assert 1 == store.spending().answers_bad


def test_a_second_answer_of_no_use_is_wasted_too(open_tracker, folder):
    tracker = open_tracker()
    keep(tracker.responses, "a", cost=Decimal("0.003"))
    tracker.responses.mark(key_of("a"), "too short")
    (request,) = tracker.responses.begin([Intent(request=intent("a").request, most=CENT, replaces=True)], budget=None)
    tracker.responses.finish([answered(request, Decimal("0.004"))])
    for _ in range(2):
        tracker.responses.mark(key_of("a"), "too short again")

    assert (2, Decimal("0.007")) == (
        tracker.responses.spending().answers_bad,
        tracker.responses.spending().wasted,
    )
    assert as_builtins(tracker.session) == as_builtins(rebuilt(folder))


def test_an_answer_that_the_caller_kept_by_itself_may_be_marked(open_tracker):
    tracker = open_tracker()
    tracker.record_api_response("own", {"text": "x"}, 0.25)
    for _ in range(2):
        tracker.responses.mark("own", "too short")

    assert (1, Decimal("0.25")) == (tracker.responses.spending().answers_bad, tracker.responses.spending().wasted)


def test_a_miss_is_explained(open_tracker):
    store = open_tracker().responses
    keep(store, "a")

    assert "seed (1 here, absent stored)" in store.why_miss(intent("a", seed=1).request)


def test_what_json_cannot_hold_is_no_answer(open_tracker):
    with pytest.raises(InvalidMetric):
        open_tracker().responses.keep("own", {"text": object()}, Decimal(0))


def test_a_kept_answer_of_another_store_is_found_here(open_tracker, tmp_path):
    elsewhere = open_tracker(output_dir=tmp_path / "elsewhere").responses
    request = granted(elsewhere, "a")
    store = open_tracker().responses
    store.keep_outcome(answered(request))

    assert "about a" == store.read(key_of("a")).response["text"]


def test_threads_share_one_store_and_count_right(open_tracker, folder):
    tracker = open_tracker()
    errors: list[BaseException] = []

    def work(first: int, store: RunResponses) -> None:
        try:
            for number in range(first, first + 10):
                request = granted(store, number, most=CENT)
                if number % 3 == 0:
                    store.finish([Lost(granted=request, reason="it broke")])
                elif number % 3 == 1:
                    store.finish([Refused(granted=request, reason="HTTP 400")])
                else:
                    store.finish([answered(request, Decimal("0.001"))])
                    store.serve(key_of(number))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(100 * number, tracker.responses)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [] == errors
    asked = [100 * number + more for number in range(6) for more in range(10)]
    kept = [number for number in asked if number % 3 == 2]
    spending = tracker.responses.spending()
    assert (len(kept), len(kept), Decimal("0.001") * len(kept)) == (
        spending.answers,
        spending.answers_served,
        spending.spent,
    )
    assert (CENT * spending.requests_in_doubt, 0) == (spending.in_doubt, spending.reserved)
    assert as_builtins(rebuilt(folder)) == as_builtins(tracker.session)


def test_kinds_of_ends_are_told_apart_in_the_journal(open_tracker, folder):
    store = open_tracker().responses
    store.finish([Refused(granted=granted(store, "a"), reason="HTTP 400: no")])
    store.finish([Lost(granted=granted(store, "b"), reason="it broke")])

    kinds = {"request_refused": RequestRefused, "request_lost": RequestLost, "request_sent": RequestSent}
    lines = [msgspec.json.decode(line) for line in folder.requests.read_bytes().splitlines()]
    read = [
        msgspec.json.decode(raw, type=kinds[line["event"]])
        for raw, line in zip(folder.requests.read_bytes().splitlines(), lines, strict=True)
    ]
    assert ["HTTP 400: no", "it broke"] == [each.reason for each in read if not isinstance(each, RequestSent)]


def test_what_the_run_lacks_is_known_once_its_index_is_loaded(open_tracker):
    store = open_tracker().responses
    assert not store.lacks(key_of("a"))

    keep(store, "a")

    assert (False, True) == (store.lacks(key_of("a")), store.lacks(key_of("b")))
