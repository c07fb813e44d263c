"""What a job holds in memory does not grow with its prompts, its answers or its failures."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from crashproof.answers.store import ResponseStore
from crashproof.records.requests import Spending
from crashproof.rules.requests import TeacherRequest
from crashproof.teacher.client.client import AsyncTeacher, OnFailure
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.client.prices import PriceTable
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.client.transport import Delivered, Failed, Reply
from crashproof.teacher.jobs.batch_engines import ReadBatchEngine, WriteBatchEngine
from crashproof.teacher.jobs.engine import Engine, TeacherSettings
from crashproof.teacher.jobs.generation import JobResult, run_job
from crashproof.teacher.jobs.job import GenerationJob
from crashproof.teacher.jobs.local_engine import LocalEngine

URL = "http://127.0.0.1:9/v1"
NUM_BYTES = 8 << 10
"""Of each prompt and each answer."""
FEW, MANY = 100, 450
MOST_GROWTH = (MANY - FEW) * NUM_BYTES * 2 // 5
"""Less than the prompts alone: what differs between two runs is how many of those in flight coincide."""

ANSWERED = Delivered(
    body=json.dumps(
        {
            "choices": [{"message": {"role": "assistant", "content": "so " * (NUM_BYTES // 3)}}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 9},
        }
    ).encode()
)
EMPTY = Delivered(body=b'{"choices": [{"message": {"role": "assistant", "content": ""}}]}')


class ScriptedTransport:
    """A network on which every request ends the same way."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    async def send(self, request: TeacherRequest) -> Reply:
        await asyncio.sleep(0)
        if isinstance(self._reply, Failed):
            # Servers put an id of the request into their words.
            return Failed(
                reason=f"HTTP 400: request {request.key} " + "is not allowed " * 20,
                status=400,
                is_retryable=False,
                may_have_been_paid=False,
            )
        return self._reply

    async def close(self) -> None:
        pass


class ScriptedSettings(TeacherSettings):
    """Settings of a teacher on such a network."""

    reply: Reply

    def open(
        self, form: RequestForm, store: ResponseStore, on_failure: OnFailure, *, keeps_truncated: bool
    ) -> AsyncTeacher:
        return AsyncTeacher(
            form.model,
            store=store,
            endpoint=self.endpoint,
            prices=self.prices,
            limits=self.limits,
            keeps_truncated=keeps_truncated,
            on_failure=on_failure,
            transport=ScriptedTransport(type(self).reply),
        )


class Nobody:
    def advance(self, done: int, num_questions: int, spending: Spending) -> None:
        pass


def make_job(folder: Path, count: int, **fields: Any) -> GenerationJob:
    folder.mkdir(exist_ok=True)
    with (folder / "P.jsonl").open("w") as file:
        for number in range(count):
            text = f"{number} " + "?" * NUM_BYTES
            body = {"messages": [{"role": "user", "content": text}]}
            as_batch = {"custom_id": f"id-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(as_batch if fields.get("is_batch") else {"prompt": text}) + "\n")
    return GenerationJob(
        prompts=folder / "P.jsonl", out=folder / "D.jsonl", form=RequestForm(base_url=URL, model="teacher")
    )


def peak_bytes(work: Callable[[], JobResult]) -> tuple[int, JobResult]:
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        result = work()
        return tracemalloc.get_traced_memory()[1] - before, result
    finally:
        tracemalloc.stop()


def local_engine(reply: Reply) -> Callable[[OnFailure], Engine]:
    kind = type("Settings", (ScriptedSettings,), {"reply": reply})
    settings = kind(endpoint=Endpoint(base_url=URL), prices=PriceTable.load(), limits=Limits(concurrency=4))
    return lambda on_failure: LocalEngine(settings=settings, on_failure=on_failure)


def refused() -> Failed:
    return Failed(reason="", is_retryable=False, may_have_been_paid=False)


REPLIES = {"answered": ANSWERED, "unusable": EMPTY, "refused": refused()}


@pytest.mark.parametrize("kind", REPLIES)
def test_a_job_holds_neither_prompts_nor_answers_nor_reasons(tmp_path: Path, kind: str) -> None:
    peaks = {}
    for count in (FEW, MANY):
        job = make_job(tmp_path / str(count), count)
        peaks[count], result = peak_bytes(partial(run_job, job, local_engine(REPLIES[kind]), progress=Nobody()))
        assert result.written is not None
        num_answers = count if kind == "answered" else 0
        assert (num_answers, count - num_answers) == (result.written.num_answers, result.written.num_failed)

    print(peaks)
    assert peaks[MANY] - peaks[FEW] < MOST_GROWTH
    if kind == "answered":
        again, _ = peak_bytes(partial(run_job, job, local_engine(REPLIES[kind]), progress=Nobody()))
        assert again - peaks[FEW] < MOST_GROWTH


def write_results(folder: Path, count: int) -> Path:
    body = json.loads(ANSWERED.body)
    with (folder / "R.jsonl").open("w") as file:
        for number in reversed(range(count)):
            response = {"status_code": 200, "body": body}
            file.write(json.dumps({"custom_id": f"id-{number}", "response": response, "error": None}) + "\n")
    return folder / "R.jsonl"


@pytest.mark.long
def test_reading_a_batch_holds_the_results_that_are_stored_together_and_no_requests(tmp_path: Path) -> None:
    count = 1_000
    job = make_job(tmp_path / "job", count, is_batch=True)
    engine = ReadBatchEngine(paths=[write_results(job.out.parent, count)], prices=PriceTable.load())

    peak, result = peak_bytes(partial(run_job, job, lambda _: engine, progress=Nobody()))

    assert result.written is not None
    assert count == result.written.num_answers
    # Request, answer, and the line of both: each of 256 that share a sync.
    assert peak < 256 * 6 * NUM_BYTES < count * 2 * NUM_BYTES


def test_writing_a_batch_holds_one_file_and_nothing_else(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", MANY)
    engine = WriteBatchEngine(path=tmp_path / "B.jsonl")

    peak, _ = peak_bytes(partial(run_job, job, lambda _: engine, progress=Nobody()))

    # The file while it grows, and once it is complete.
    assert peak < 3 * (tmp_path / "B.jsonl").stat().st_size
