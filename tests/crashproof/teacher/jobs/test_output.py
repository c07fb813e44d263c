"""The output of a job that grows while its questions are asked."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from alert_receiver import eventually

from crashproof.answers.store import Answered, Granted, Intent, ResponseStore
from crashproof.errors import DataError, DiskFull, StoreUnavailable
from crashproof.records.requests import AnswerRecord
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.jobs.growing_output import GrowingOutput
from crashproof.teacher.jobs.job import GenerationJob
from crashproof.teacher.jobs.output import JobOutput, Written
from crashproof.testing import FaultyDisk


class Job:
    """A job, its store, and what is known of its questions."""

    def __init__(self, folder: Path, store: ResponseStore) -> None:
        self._folder = folder
        self.store = store
        self.reasons: dict[str, str] = {}

    def ask(self, *prompts: str) -> None:
        path = self._folder / "P.jsonl"
        path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        form = RequestForm(base_url="http://teacher/v1", model="teacher")
        self.job = GenerationJob(prompts=path, out=self._folder / "D.jsonl", form=form)

    def output(self, **given: Any) -> JobOutput:
        return self.job.output(given.pop("store", self.store), self.reasons, **given)

    def answer(self, *prompts: str, says: str = "It is.", replaces: bool = False) -> None:
        for prompt in prompts:
            request = self.job.form.fill(prompt)
            intent = Intent(request=request, most=0, replaces=replaces)
            (granted,) = self.store.begin([intent], budget=None)
            assert isinstance(granted, Granted)
            response = {"choices": [{"message": {"role": "assistant", "content": says}, "finish_reason": "stop"}]}
            self.store.finish([Answered(granted=granted, cost=0, response=response)])

    def fail(self, *prompts: str) -> None:
        self.reasons |= {self.job.form.fill(prompt).key: "it was refused" for prompt in prompts}

    @property
    def partial(self) -> list[str]:
        return prompts_in(self.job.paths.partial)

    @property
    def failed_so_far(self) -> list[str]:
        return prompts_in(self.job.paths.partial_failed)

    @property
    def out(self) -> list[str]:
        return prompts_in(self.job.out)

    @property
    def failed(self) -> list[str]:
        return prompts_in(self.job.failed)


def prompts_in(path: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def job(tmp_path: Path, open_tracker: Callable[..., Any]) -> Job:
    return Job(tmp_path, open_tracker().responses)


def test_it_grows_in_order_up_to_the_first_question_that_is_open(job: Job) -> None:
    job.ask(*"abcde")
    output = job.output()
    job.answer("a", "b", "d")
    output.advance()
    first = job.partial
    job.answer("c")
    output.advance()
    second = job.partial
    output.advance()

    assert (["a", "b"], ["a", "b", "c", "d"], second) == (first, second, job.partial)
    assert not job.job.out.exists()
    job.answer("e")
    assert Written(num_answers=5, num_failed=0) == output.finish()
    assert (list("abcde"), [], False) == (job.out, job.partial, job.job.failed.exists())


def test_a_question_without_an_answer_is_passed_over_once_its_reason_is_known(job: Job) -> None:
    job.ask(*"abc")
    output = job.output()
    job.answer("a", "c")
    job.fail("b")
    output.advance()

    assert (["a", "c"], ["b"]) == (job.partial, job.failed_so_far)
    assert Written(num_answers=2, num_failed=1) == output.finish()
    assert (["a", "c"], ["b"]) == (job.out, job.failed)


def test_an_unusable_answer_that_may_be_replaced_is_waited_for(job: Job) -> None:
    job.ask(*"abc")
    output = job.output()
    job.answer("a", "c")
    job.answer("b", says="")
    output.advance()
    before = job.partial
    job.store.mark(job.job.form.fill("b").key, "it is empty")
    job.answer("b", replaces=True)
    output.advance()

    assert (["a"], list("abc")) == (before, job.partial)
    assert Written(num_answers=3, num_failed=0) == output.finish()


@pytest.mark.parametrize("is_answered_before", [False, True], ids=["no answer before", "an unusable one before"])
def test_a_question_that_failed_and_whose_equal_was_answered_later_has_the_answer(
    job: Job, is_answered_before: bool
) -> None:
    """The first one exhausts its attempts, hours before the second one is asked."""
    job.ask("a", "b", "c", "b")
    output = job.output()
    job.answer("a", "c")
    if is_answered_before:
        job.answer("b", says="")
        job.store.mark(job.job.form.fill("b").key, "it is empty")
    job.fail("b")
    output.advance()
    before = job.failed_so_far
    job.answer("b", replaces=is_answered_before)

    assert ["b", "b"] == before
    assert Written(num_answers=4, num_failed=0) == output.finish()
    assert (["a", "b", "c", "b"], False, False) == (
        job.out,
        job.job.failed.exists(),
        job.job.paths.partial_failed.exists(),
    )


def test_what_failed_and_still_has_no_answer_is_written_once(job: Job) -> None:
    job.ask(*"abab")
    output = job.output()
    job.answer("a")
    job.fail("b")
    output.advance()

    assert Written(num_answers=2, num_failed=2) == output.finish()
    assert (["a", "a"], ["b", "b"]) == (job.out, job.failed)


def test_a_next_attempt_begins_the_partial_output_anew(job: Job) -> None:
    job.ask(*"abc")
    job.answer("a", "b")
    first = job.output()
    first.advance()
    first.close()
    left = job.partial
    second = job.output()
    second.advance()

    assert (["a", "b"], ["a", "b"]) == (left, job.partial)
    job.answer("c")
    assert Written(num_answers=3, num_failed=0) == second.finish()


def test_whoever_finishes_without_having_advanced_writes_the_same(job: Job) -> None:
    job.ask(*map(str, range(300)))
    job.answer(*map(str, range(0, 300, 2)))
    job.fail(*map(str, range(1, 300, 4)))
    growing = job.output()
    growing.advance()
    growing.finish()
    contents = [path.read_bytes() for path in (job.job.out, job.job.failed)]

    job.output().finish()

    assert contents == [path.read_bytes() for path in (job.job.out, job.job.failed)]
    assert (150, 150) == (len(job.out), len(job.failed))


class StoreThatGoesAway:
    """A shared store, whose network breaks in the middle of an answer."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store
        self.num_answers_until_away: int | None = None
        self.num_refusals = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read_all(self, keys: Sequence[str]) -> Iterator[AnswerRecord | None]:
        for record in self._store.read_all(keys):
            if self.num_answers_until_away is not None:
                if not self.num_answers_until_away:
                    self.num_refusals += 1
                    raise StoreUnavailable("postgresql://…", reason="the network is down")
                self.num_answers_until_away -= 1
            yield record


def test_a_store_that_is_away_for_a_moment_leaves_no_line_out_and_none_twice(job: Job) -> None:
    job.ask(*map(str, range(100)))
    job.answer(*map(str, range(100)))
    store = StoreThatGoesAway(job.store)
    output = job.output(store=store)
    for number in (0, 1, 30):
        store.num_answers_until_away = number
        with pytest.raises(StoreUnavailable):
            output.advance()
    store.num_answers_until_away = 10
    with pytest.raises(StoreUnavailable):
        output.finish()
    store.num_answers_until_away = None

    assert Written(num_answers=100, num_failed=0) == output.finish()
    assert [str(number) for number in range(100)] == job.out


def test_prompts_that_become_malformed_never_make_a_short_output(job: Job) -> None:
    job.ask(*map(str, range(200)))
    job.answer(*map(str, range(200)))
    lines = job.job.prompts.read_text().splitlines(keepends=True)
    job.job.prompts.write_text("".join(lines[:150]) + "{\n" + "".join(lines[150:]))
    output = job.output()

    for _ in "12":
        with pytest.raises(DataError, match="line 151"):
            output.advance()
    with pytest.raises(DataError, match="line 151"):
        output.finish()
    assert not job.job.out.exists()
    job.job.prompts.write_text("".join(lines))
    assert Written(num_answers=200, num_failed=0) == output.finish()


def test_whichever_operation_a_full_disk_refuses_the_output_is_the_old_one_or_complete(
    job: Job, tmp_path: Path
) -> None:
    job.ask(*"abc")
    job.answer("a", "c")
    job.fail("b")
    job.job.folder.root.mkdir()
    job.job.out.write_text("old\n")
    counting = FaultyDisk(tmp_path, tmp_path.parent / "count")
    grow(job, counting)
    assert counting.num_operations > 8
    for number in range(counting.num_operations):
        job.job.out.write_text("old\n")
        disk = FaultyDisk(tmp_path, tmp_path.parent / f"scratch_{number}", fails_at=number, error=errno.ENOSPC)
        grow(job, disk)

        content = job.job.out.read_text()
        assert content == "old\n" or ["a", "c"] == job.out, number
        assert [] == list(job.job.folder.root.iterdir()), number
    assert Written(num_answers=2, num_failed=1) == job.output().finish()


def grow(job: Job, disk: FaultyDisk) -> None:
    output = job.output(disk=disk)
    for step in (output.advance, output.finish):
        try:
            step()
        except (DiskFull, OSError) as error:
            print(error)
    output.close()


class Faulty(Mapping[str, str]):
    """Reasons that cannot be read."""

    def __getitem__(self, key: str) -> str:
        raise OSError(errno.EIO, "Input/output error")

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def test_growing_goes_on_by_itself_until_it_is_left(job: Job) -> None:
    job.ask(*"abc")
    job.answer("a")
    output = job.output()
    with GrowingOutput(output, interval_seconds=0.01):
        eventually(lambda: job.partial == ["a"])
        job.answer("b")
        eventually(lambda: job.partial == ["a", "b"])
    job.answer("c")
    output.close()

    assert ["a", "b"] == job.partial


def test_what_goes_wrong_while_growing_is_told_once_and_ends_nothing(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    job.ask("a")
    output = job.job.output(job.store, Faulty())
    with GrowingOutput(output, interval_seconds=0.01):
        eventually(lambda: "is written at the end instead" in caplog.text)

    assert 1 == caplog.text.count("is written at the end instead")


def test_growing_outlives_a_store_that_is_away(job: Job) -> None:
    job.ask("a")
    job.answer("a")
    store = StoreThatGoesAway(job.store)
    store.num_answers_until_away = 0
    with GrowingOutput(job.output(store=store), interval_seconds=0.01):
        eventually(lambda: store.num_refusals > 2)
        store.num_answers_until_away = None
        eventually(lambda: job.partial == ["a"])
