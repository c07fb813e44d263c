"""A provider's batch answers a job's questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from crashproof.answers.store import Intent, ResponseStore
from crashproof.errors import DataError
from crashproof.teacher.client.prices import Price
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.jobs.batch_engines import BatchRead, read_batch, write_batch
from crashproof.teacher.jobs.job import GenerationJob

PRICE = Price(
    input=Decimal(2), cached_input=Decimal(1), output=Decimal(8), reasoning=Decimal(8), batch_share=Decimal("0.5")
)
USAGE = {"prompt_tokens": 10, "completion_tokens": 5}


@pytest.fixture
def store(open_tracker: Callable[..., Any]) -> ResponseStore:
    return open_tracker().responses


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., GenerationJob]:
    def make(*prompts: str, **parameters: Any) -> GenerationJob:
        path = tmp_path / "P.jsonl"
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
        form = RequestForm(base_url="http://teacher/v1", model="teacher", parameters=parameters)
        return GenerationJob(prompts=path, out=tmp_path / "D.jsonl", form=form)

    return make


def body(text: str = "It is.", **others: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": USAGE} | others


def result(custom_id: str, content: Mapping[str, Any] | None, *, error: Any = None) -> dict[str, Any]:
    response = None if content is None else {"status_code": 200, "body": content}
    return {"custom_id": custom_id, "response": response, "error": error}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        yield from map(json.loads, file)


def keys_of(job: GenerationJob) -> list[str]:
    return [question.request.key for question in job.questions()]


def test_each_open_request_is_written_once_under_its_key(
    make_job: Callable[..., GenerationJob], store: ResponseStore, tmp_path: Path
) -> None:
    job = make_job("a", "b", "a")

    written = write_batch(job, store, tmp_path / "B.jsonl")

    assert ([tmp_path / "B.jsonl"], 2) == (written.files, written.num_requests)
    assert keys_of(job)[:2] == [line["custom_id"] for line in lines_of(tmp_path / "B.jsonl")]


def test_what_does_not_fit_into_one_file_goes_into_the_next(
    make_job: Callable[..., GenerationJob], store: ResponseStore, tmp_path: Path
) -> None:
    job = make_job(*map(str, range(5)))

    written = write_batch(job, store, tmp_path / "B.jsonl", most_lines=2)

    assert [tmp_path / name for name in ("B.jsonl", "B.1.jsonl", "B.2.jsonl")] == written.files
    assert keys_of(job) == [line["custom_id"] for path in written.files for line in lines_of(path)]


def test_results_are_kept_at_the_price_of_a_batch(
    make_job: Callable[..., GenerationJob], store: ResponseStore, tmp_path: Path
) -> None:
    job = make_job("a", "b")
    one, other = keys_of(job)

    read = read_batch(job, store, [write(tmp_path / "R.jsonl", result(other, body()), result(one, body()))], PRICE)

    assert BatchRead(num_answers=2, num_known=0, reasons={}) == read
    spending = store.spending()
    assert (2, 2 * Decimal("0.00003"), 0) == (spending.answers, spending.spent, spending.requests_in_doubt)


def test_results_are_taken_from_several_files_and_over_several_syncs(
    make_job: Callable[..., GenerationJob], store: ResponseStore, tmp_path: Path
) -> None:
    job = make_job(*map(str, range(600)))
    keys = keys_of(job)
    files = [
        write(tmp_path / f"R{number}.jsonl", *(result(key, body()) for key in keys[number::2])) for number in (0, 1)
    ]

    read = read_batch(job, store, files, PRICE)

    assert BatchRead(num_answers=600, num_known=0, reasons={}) == read
    assert 600 == store.spending().answers


def test_an_answer_that_is_there_or_stands_there_twice_is_paid_once(
    make_job: Callable[..., GenerationJob], store: ResponseStore, tmp_path: Path
) -> None:
    job = make_job("a")
    (key,) = keys_of(job)
    results = write(tmp_path / "R.jsonl", result(key, body("first")), result(key, body("second")))

    reads = [read_batch(job, store, [results], PRICE) for _ in range(2)]

    assert [(1, 1), (0, 2)] == [(read.num_answers, read.num_known) for read in reads]
    found = store.read(key)
    assert found is not None
    assert "first" == found.response["choices"][0]["message"]["content"]


def test_a_failure_is_told_by_its_key(
    make_job: Callable[..., GenerationJob], store: ResponseStore, tmp_path: Path
) -> None:
    job = make_job("a")
    (key,) = keys_of(job)

    read = read_batch(job, store, [write(tmp_path / "R.jsonl", result(key, None, error={"code": "expired"}))], PRICE)

    assert {key: "the batch reports: expired"} == read.reasons
    assert 0 == store.spending().answers


def test_an_answer_of_no_use_is_kept_and_marked(
    make_job: Callable[..., GenerationJob], store: ResponseStore, tmp_path: Path
) -> None:
    job = make_job("a")
    (key,) = keys_of(job)

    read_batch(job, store, [write(tmp_path / "R.jsonl", result(key, {"choices": [], "usage": USAGE}))], PRICE)

    found = store.read(key)
    assert found is not None
    assert "it has no choices" == found.problem


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": -1}], ids=["missing", "negative"])
@pytest.mark.parametrize("parameters", [{"max_tokens": 100}, {}], ids=["bounded", "without a bound"])
def test_without_a_usage_the_cost_is_estimated_from_the_text(
    make_job: Callable[..., GenerationJob],
    store: ResponseStore,
    tmp_path: Path,
    usage: Any,
    parameters: dict[str, Any],
) -> None:
    job = make_job("a", **parameters)
    (question,) = job.questions()

    results = write(tmp_path / "R.jsonl", result(question.request.key, body(usage=usage)))
    read_batch(job, store, [results], PRICE)

    dearest = PRICE.in_batch().worst_case(question.request.body | {"max_tokens": 100})
    assert 0 < store.spending().spent <= dearest


@pytest.mark.parametrize(
    "line, words",
    [
        (result("nobody's", body()), 'line 2: its custom_id "nobody\'s" does not belong to this job'),
        ({"custom_id": "x"}, 'line 2: a result needs a "response" or an "error"'),
    ],
    ids=["another job", "malformed"],
)
def test_nothing_is_taken_of_a_file_with_a_bad_line(
    make_job: Callable[..., GenerationJob], store: ResponseStore, tmp_path: Path, line: dict[str, Any], words: str
) -> None:
    job = make_job("a")
    results = write(tmp_path / "R.jsonl", result(keys_of(job)[0], body()), line)

    with pytest.raises(DataError) as told:
        read_batch(job, store, [results], PRICE)

    assert words in str(told.value)
    assert None is store.read(keys_of(job)[0])


def test_no_budget_keeps_out_what_is_paid_for(
    make_job: Callable[..., GenerationJob], store: ResponseStore, tmp_path: Path
) -> None:
    job = make_job("a", "b")
    one, other = (question.request for question in job.questions())
    read_batch(job, store, [write(tmp_path / "R.jsonl", result(one.key, body()))], PRICE)

    (verdict,) = store.begin([Intent(request=other, most=Decimal("0.00001"))], budget=Decimal("0.00003"))

    assert Decimal("0.00003") == verdict.spending.committed  # type: ignore[union-attr]
