"""What a generation job asks, and what it makes of the answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from crashproof.answers.store import Answered, Granted, Intent, ResponseStore
from crashproof.errors import ConfigError, DataError
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.jobs.job import GenerationJob, Written

URL = "http://teacher/v1"


@pytest.fixture
def store(open_tracker: Callable[..., Any]) -> ResponseStore:
    return open_tracker().responses


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., GenerationJob]:
    def make(*lines: Mapping[str, Any], samples: int = 1, out: str = "D.jsonl", **parameters: Any) -> GenerationJob:
        prompts = tmp_path / "P.jsonl"
        prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
        form = RequestForm(base_url=URL, model="teacher", parameters=parameters)
        return GenerationJob(prompts=prompts, out=tmp_path / out, form=form, num_samples=samples)

    return make


def answer(store: ResponseStore, job: GenerationJob, *places: int, says: str | None = "It is.", **how: Any) -> None:
    """Answer the questions at these places."""
    questions = list(job.questions())
    for place in places:
        request = questions[place].request
        (granted,) = store.begin([Intent(request=request, most=0)], budget=None)
        assert isinstance(granted, Granted)
        response = {"choices": [{"message": {"role": "assistant", "content": says}}]}
        store.finish([Answered(granted=granted, cost=0, response=response, **how)])


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "out, run, failed",
    [
        ("D.jsonl", "D.run", "D.failed.jsonl"),
        ("D.v1.jsonl", "D.v1.run", "D.v1.failed.jsonl"),
        ("D.v1", "D.v1.run", "D.v1.failed.jsonl"),
        ("D.run", "D.run.run", "D.run.failed.jsonl"),
        ("D.json", "D.json.run", "D.json.failed.jsonl"),
    ],
)
def test_the_run_and_the_failures_stand_beside_the_output(
    make_job: Callable[..., GenerationJob], tmp_path: Path, out: str, run: str, failed: str
) -> None:
    job = make_job(out=out)

    assert (tmp_path / run, tmp_path / failed) == (job.folder.root, job.failed)


def test_questions_come_in_the_prompts_order_sample_by_sample(make_job: Callable[..., GenerationJob]) -> None:
    job = make_job({"prompt": "a"}, {"messages": [{"role": "user", "content": "b"}]}, samples=2)

    told = [(each.prompt.line, each.sample, each.request.sample) for each in job.questions()]

    assert [(1, 0, 0), (1, 1, 1), (2, 0, 0), (2, 1, 1)] == told
    assert 4 == job.count()


def test_equal_prompts_of_any_form_share_a_key(make_job: Callable[..., GenerationJob]) -> None:
    job = make_job({"prompt": "a", "id": 1}, {"messages": [{"role": "user", "content": "a"}]}, {"prompt": "A"})

    keys = [each.request.key for each in job.questions()]

    assert (True, False) == (keys[0] == keys[1], keys[0] == keys[2])


@pytest.mark.parametrize("parameters", [{"stream": True}, {"n": 2}], ids=["stream", "n"])
def test_parameters_whose_answers_would_be_paid_for_and_not_kept_are_refused(
    make_job: Callable[..., GenerationJob], parameters: dict[str, Any]
) -> None:
    body = {"messages": [{"role": "user", "content": "a"}]} | parameters
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}

    with pytest.raises(ConfigError, match=r"Leave it out\."):
        make_job({"prompt": "a"}, **parameters).count()
    with pytest.raises(DataError, match=r"P\.jsonl, line 1: .* Leave it out\."):
        make_job(line).count()


@pytest.mark.parametrize("parameters", [{"stream": False}, {"n": 1}, {"n": None}], ids=str)
def test_their_defaults_are_allowed(make_job: Callable[..., GenerationJob], parameters: dict[str, Any]) -> None:
    assert 1 == make_job({"prompt": "a"}, **parameters).count()


def test_what_has_no_answer_is_listed_with_its_reason(
    make_job: Callable[..., GenerationJob], store: ResponseStore
) -> None:
    job = make_job(
        {"prompt": "a", "id": 1}, {"messages": [{"role": "user", "content": "b"}], "id": 2}, {"prompt": "c"}
    )
    answer(store, job, 0)
    asked = [each.request.key for each in job.questions()]

    written = job.output(store, {asked[1]: "it was refused"}).finish()

    assert Written(num_answers=1, num_failed=2) == written
    assert [{"prompt": "a", "teacher_text": "It is.", "finish_reason": None, "id": 1}] == lines_of(job.out)
    messages = [{"role": "user", "content": "b"}]
    assert [
        {"messages": messages, "id": 2, "line": 2, "reason": "it was refused", "key": asked[1]},
        {"prompt": "c", "line": 3, "reason": "not requested yet", "key": asked[2]},
    ] == lines_of(job.failed)


def test_a_list_of_failures_names_the_sample_and_the_tools(
    make_job: Callable[..., GenerationJob], store: ResponseStore
) -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    job = make_job({"messages": [{"role": "user", "content": "b"}], "tools": tools}, samples=2)
    answer(store, job, 0)

    job.output(store, {}).finish()

    (failed,) = lines_of(job.failed)
    assert (1, tools) == (failed["failed_sample"], failed["tools"])


def test_a_reason_is_not_told_of_what_has_an_answer_by_now(
    make_job: Callable[..., GenerationJob], store: ResponseStore
) -> None:
    job = make_job({"prompt": "a"})
    answer(store, job, 0)

    job.output(store, {next(job.questions()).request.key: "it was refused"}).finish()

    assert not job.failed.exists()


@pytest.mark.parametrize(
    "parameters, how, reason",
    [
        ({}, {"problem": "it is no JSON"}, "it is no JSON"),
        ({}, {"says": ""}, "it is empty"),
        ({"response_format": {"type": "json_object"}}, {"says": "no JSON either"}, "its content is not valid JSON"),
    ],
    ids=["marked", "empty", "not as asked"],
)
def test_a_kept_answer_of_no_use_says_what_is_wrong_with_it(
    make_job: Callable[..., GenerationJob],
    store: ResponseStore,
    parameters: dict[str, Any],
    how: dict[str, Any],
    reason: str,
) -> None:
    job = make_job({"prompt": "a"}, **parameters)
    answer(store, job, 0, **how)

    assert Written(num_answers=0, num_failed=1) == job.output(store, {}).finish()

    (failed,) = lines_of(job.failed)
    assert failed["reason"].startswith(f"the answer is stored but unusable: {reason}")


def test_the_list_of_failures_goes_once_all_is_answered(
    make_job: Callable[..., GenerationJob], store: ResponseStore
) -> None:
    job = make_job({"prompt": "a"}, {"prompt": "b"})
    answer(store, job, 0)
    job.output(store, {}).finish()
    assert job.failed.exists()
    answer(store, job, 1)

    assert Written(num_answers=2, num_failed=0) == job.output(store, {}).finish()

    assert not job.failed.exists()


def test_the_same_answers_make_the_same_bytes(make_job: Callable[..., GenerationJob], store: ResponseStore) -> None:
    job = make_job({"prompt": "ä\u2028", "z": 1, "a": [1.5, None]})
    answer(store, job, 0, says="ö\n\x7f")
    job.output(store, {}).finish()
    content = job.out.read_bytes()

    job.output(store, {}).finish()

    assert content == job.out.read_bytes()
    assert 1 == content.count(b"\n")
    assert [{"prompt": "ä\u2028", "teacher_text": "ö\n\x7f", "finish_reason": None, "z": 1, "a": [1.5, None]}] == [
        json.loads(content)
    ]


def test_a_job_is_another_one_where_its_answers_would_be_others(make_job: Callable[..., GenerationJob]) -> None:
    jobs = [make_job(), make_job(temperature=1), make_job(samples=2)]

    configs = [job.config() for job in jobs]

    assert [0, 1, 2] == [configs.index(config) for config in configs]


def test_a_list_of_failures_can_be_asked_again(make_job: Callable[..., GenerationJob], store: ResponseStore) -> None:
    job = make_job({"prompt": "a", "id": 1}, {"messages": [{"role": "user", "content": "b"}]}, samples=2)
    job.output(store, {}).finish()

    again = make_job(*lines_of(job.failed), out="E.jsonl")

    assert ["a", "a", "b", "b"] == [question.prompt.messages[0]["content"] for question in again.questions()]


@pytest.mark.parametrize(
    "name", ["D.jsonl", "D.failed.jsonl", "D.run/answers.partial.jsonl", "D.run/failed.partial.jsonl"]
)
def test_what_a_job_writes_is_never_what_it_reads(
    make_job: Callable[..., GenerationJob], tmp_path: Path, name: str
) -> None:
    job = dataclasses.replace(make_job({"prompt": "a"}), prompts=tmp_path / name)

    with pytest.raises(ConfigError, match="would overwrite its own prompts"):
        job.check_paths()


@pytest.mark.parametrize("name", [".", "D.run"])
def test_a_folder_of_prompts_is_not_written_to(
    make_job: Callable[..., GenerationJob], tmp_path: Path, name: str
) -> None:
    (tmp_path / "D.run").mkdir()
    job = dataclasses.replace(make_job({"prompt": "a"}), prompts=tmp_path / name)

    with pytest.raises(ConfigError, match="would lie among the prompts"):
        job.check_paths()


def test_of_equal_requests_one_is_a_distinct_question(make_job: Callable[..., GenerationJob]) -> None:
    job = make_job({"prompt": "a"}, {"prompt": "b"}, {"messages": [{"role": "user", "content": "a"}]}, samples=2)

    told = [(each.prompt.line, each.sample) for each in job.distinct_questions()]

    assert [(1, 0), (1, 1), (2, 0), (2, 1)] == told
