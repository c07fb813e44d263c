"""A job of many prompts."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter, process_time

import psutil

from benchmarks.figures import Section
from crashproof.answers.store import ResponseStore
from crashproof.records.requests import Spending
from crashproof.rules.requests import TeacherRequest
from crashproof.teacher.client.client import AsyncTeacher, OnFailure
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.client.prices import PriceTable
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.client.transport import Delivered, Failed, Reply
from crashproof.teacher.jobs.engine import TeacherSettings
from crashproof.teacher.jobs.generation import run_job
from crashproof.teacher.jobs.job import GenerationJob
from crashproof.teacher.jobs.local_engine import LocalEngine

__all__ = ["measure"]

_URL = "http://127.0.0.1:9/v1"
_CONCURRENCY = 256
_SHORT, _LONG = 40, 2 << 10
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    num_prompts: int
    prompt_bytes: int = _SHORT
    is_refused: bool = False
    """Whether the teacher answers none of them."""

    @property
    def name(self) -> str:
        return f"{self.num_prompts}-{self.prompt_bytes}-{self.is_refused}"


_CASES = (
    _Case(num_prompts=10_000),
    _Case(num_prompts=50_000),
    _Case(num_prompts=20_000, prompt_bytes=_LONG),
    _Case(num_prompts=10_000, is_refused=True),
    _Case(num_prompts=50_000, is_refused=True),
)
_LARGEST = (_Case(num_prompts=1_000_000), _Case(num_prompts=1_000_000, is_refused=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    seconds: float
    cpu_seconds: float
    first_sent_seconds: float | None
    """Until the first request was sent; None if there was none."""
    peak_bytes: int
    """Beyond what was resident before the job."""


def measure(work: Path, *, is_full: bool) -> Section:
    """Run jobs of growing numbers of prompts, and each of them again."""
    rows = []
    for case in (*_CASES, *_LARGEST) if is_full else _CASES:
        rows += [_row(case, when, _in_a_process_of_its_own(work / case.name, case)) for when in ("first", "again")]
        shutil.rmtree(work / case.name)
    return Section(
        title="A job of many prompts",
        columns=["prompts", "bytes each", "teacher", "run", "seconds", "CPU", "first request", "memory at its peak"],
        rows=rows,
        notes=[
            "`run_job` with the local engine and the run's own store, each in a process of its own; the network is "
            f"replaced by one that replies at once, with {_CONCURRENCY} requests in flight. Again: the same command, "
            "which finds every answer stored, or is refused once more. Memory is what is resident beyond what was "
            "before the job.",
            *([] if is_full else ["A million prompts are measured with `--full`."]),
        ],
    )


def _row(case: _Case, when: str, run: _Run) -> list[str]:
    return [
        f"{case.num_prompts:,}",
        f"{case.prompt_bytes:,}",
        "refuses all" if case.is_refused else "answers all",
        when,
        f"{run.seconds:,.1f}",
        f"{run.cpu_seconds:,.1f}",
        "none" if run.first_sent_seconds is None else f"after {run.first_sent_seconds:.1f} s",
        f"+{run.peak_bytes / _MIB:,.1f} MiB",
    ]


def _in_a_process_of_its_own(folder: Path, case: _Case) -> _Run:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_run, folder, case).result()


def _run(folder: Path, case: _Case) -> _Run:
    job = _job(folder, case)
    settings = _Settings(
        endpoint=Endpoint(base_url=_URL), prices=PriceTable.load(), limits=Limits(concurrency=_CONCURRENCY)
    )
    settings.network.is_refusing = case.is_refused
    resident = psutil.Process().memory_info().rss
    begun, cpu_begun = perf_counter(), process_time()
    run_job(job, lambda on_failure: LocalEngine(settings=settings, on_failure=on_failure), progress=_Nobody())
    first_sent = settings.network.first_sent_at
    return _Run(
        seconds=perf_counter() - begun,
        cpu_seconds=process_time() - cpu_begun,
        first_sent_seconds=None if first_sent is None else first_sent - begun,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident,
    )


def _job(folder: Path, case: _Case) -> GenerationJob:
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        with prompts.open("w") as file:
            for number in range(case.num_prompts):
                text = f"Question {number:09d}? ".ljust(case.prompt_bytes, "x")
                file.write(json.dumps({"prompt": text}) + "\n")
    form = RequestForm(base_url=_URL, model="teacher", parameters={"max_tokens": 40})
    return GenerationJob(prompts=prompts, out=folder / "answers.jsonl", form=form)


class _Network:
    """Replies at once."""

    def __init__(self) -> None:
        self.is_refusing = False
        self.first_sent_at: float | None = None
        message = {"role": "assistant", "content": "It is so, and has been for some time."}
        usage = {"prompt_tokens": 10, "completion_tokens": 9}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._answer = Delivered(body=json.dumps({"id": "c", "choices": [choice], "usage": usage}).encode())

    async def send(self, request: TeacherRequest) -> Reply:
        self.first_sent_at = self.first_sent_at or perf_counter()
        await asyncio.sleep(0)
        if not self.is_refusing:
            return self._answer
        reason = f"HTTP 400: this prompt is not allowed (request {request.key[:16]})"
        return Failed(reason=reason, status=400, is_retryable=False, may_have_been_paid=False)

    async def close(self) -> None:
        pass


class _Settings(TeacherSettings):
    """Settings of a teacher on that network."""

    network = _Network()

    def open(
        self, form: RequestForm, store: ResponseStore, on_failure: OnFailure, *, keeps_truncated: bool
    ) -> AsyncTeacher:
        return AsyncTeacher(
            form.model,
            parameters=form.parameters,
            store=store,
            endpoint=self.endpoint,
            prices=self.prices,
            limits=self.limits,
            keeps_truncated=keeps_truncated,
            on_failure=on_failure,
            transport=self.network,
        )


class _Nobody:
    def advance(self, done: int, num_questions: int, spending: Spending) -> None:
        """Show nothing."""
