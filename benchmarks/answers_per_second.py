"""Answers a second through the client."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import httpx2

from benchmarks.figures import Section, ratio
from benchmarks.made_runs import new_tracker
from crashproof.teacher.client.client import AsyncTeacher
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.client.prices import Price, PriceTable

__all__ = ["measure"]

_NUM_ROUNDS = 4
_ROUND_SECONDS = 0.4
_MOST_A_SECOND = 700
"""About what the server gives; only the length of the rounds depends on it."""
_PRICE = Price(input=Decimal("0.15"), cached_input=Decimal("0.075"), output=Decimal("0.6"), reasoning=Decimal("0.6"))
_PRICES = PriceTable(path=Path("prices.yaml"), as_of=date(2026, 1, 1), source="made up", prices={"teacher": _PRICE})
_BUDGET = Decimal(1_000_000)

Ask = Callable[[str], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    at_once: int
    latency_seconds: float
    num_logprobs: int = 0
    """For each token of an answer."""

    @property
    def parameters(self) -> dict[str, Any]:
        parameters: dict[str, Any] = {"temperature": 0.7, "max_tokens": 256}
        if self.num_logprobs:
            parameters |= {"logprobs": True, "top_logprobs": self.num_logprobs}
        return parameters

    @property
    def num_questions(self) -> int:
        """In one round."""
        a_second = _MOST_A_SECOND
        if self.latency_seconds:
            a_second = min(a_second, int(self.at_once / self.latency_seconds))
        return max(2 * self.at_once, int(a_second * _ROUND_SECONDS))


_CASES = (
    *(_Case(at_once=at_once, latency_seconds=0.0) for at_once in (1, 16, 64)),
    _Case(at_once=16, latency_seconds=0.0, num_logprobs=20),
    *(_Case(at_once=at_once, latency_seconds=0.05) for at_once in (1, 16, 64)),
)


@dataclass(frozen=True, slots=True)
class _Seconds:
    """Of an answer, one for each round."""

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)


def measure(work: Path, *, is_full: bool) -> Section:  # `is_full` changes nothing here.
    """Ask a server in another process, through `AsyncTeacher` and by a bare loop that keeps nothing."""
    rows = []
    for number, case in enumerate(_CASES):
        with _server(case.latency_seconds) as base_url:
            rows.append(_row(case, asyncio.run(_measured(case, work / str(number), base_url))))
    return Section(
        title="Answers a second",
        columns=["at once", "latency", "`AsyncTeacher`", "bare loop", "median time, ratio", "served again"],
        rows=rows,
        notes=[
            "`AsyncTeacher` holds a budget and keeps intent and answer durably in the run's own store; the bare loop "
            "is an `httpx2.AsyncClient` with as many connections, which decodes each answer and keeps nothing. "
            f"Medians of {_NUM_ROUNDS} rounds in turn, of at most {_CASES[0].num_questions} questions. The server is "
            "Python in another process of the same machine: without latency its own work is a large part of both. "
            "Answers have about 25 tokens; their log probabilities, where asked for, 45 KB. Served again: the same "
            "questions once more, answered from the store.",
        ],
    )


async def _measured(case: _Case, folder: Path, base_url: str) -> _Seconds:
    seconds = _Seconds()
    async with _teacher(case, folder, base_url) as ours, _bare_loop(case, base_url) as bare:
        for each_round in range(_NUM_ROUNDS + 1):
            questions = [f"Question {number} of round {each_round}?" for number in range(case.num_questions)]
            bare_seconds = await _seconds_an_answer(bare, questions, case.at_once)
            our_seconds = await _seconds_an_answer(ours, questions, case.at_once)
            served_seconds = await _seconds_an_answer(ours, questions, case.at_once)
            # The first round opens the connections.
            if each_round:
                seconds.bare.append(bare_seconds)
                seconds.ours.append(our_seconds)
                seconds.served.append(served_seconds)
    return seconds


async def _seconds_an_answer(ask: Ask, questions: Sequence[str], at_once: int) -> float:
    left = iter(questions)

    async def ask_on() -> None:
        for question in left:
            await ask(question)

    begun = perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(ask_on())
    return (perf_counter() - begun) / len(questions)


@asynccontextmanager
async def _teacher(case: _Case, folder: Path, base_url: str) -> AsyncIterator[Ask]:
    tracker = new_tracker(folder)
    teacher = AsyncTeacher(
        "teacher",
        store=tracker.responses,
        endpoint=Endpoint(base_url=base_url),
        prices=_PRICES,
        budget=_BUDGET,
        limits=Limits(concurrency=case.at_once),
        parameters=case.parameters,
    )
    async with teacher:
        yield teacher.ask
    tracker.close()


@asynccontextmanager
async def _bare_loop(case: _Case, base_url: str) -> AsyncIterator[Ask]:
    limits = httpx2.Limits(max_connections=case.at_once, max_keepalive_connections=case.at_once)
    async with httpx2.AsyncClient(limits=limits, timeout=60.0) as client:

        async def ask(question: str) -> object:
            body = {"model": "teacher", "messages": [{"role": "user", "content": question}], **case.parameters}
            response = await client.post(f"{base_url}/chat/completions", json=body)
            return response.raise_for_status().json()["choices"][0]["message"]

        yield ask


@contextmanager
def _server(latency_seconds: float) -> Iterator[str]:
    """A teacher's server in a process of its own; its base URL."""
    command = [sys.executable, "-m", "crashproof.testing.teacher_server", "--latency-seconds", str(latency_seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def _row(case: _Case, seconds: _Seconds) -> list[str]:
    logprobs = f", {case.num_logprobs} logprobs a token" if case.num_logprobs else ""
    return [
        f"{case.at_once}{logprobs}",
        f"{case.latency_seconds * 1000:.0f} ms",
        _a_second(seconds.ours),
        _a_second(seconds.bare),
        ratio(seconds.ours, seconds.bare),
        _a_second(seconds.served),
    ]


def _a_second(seconds: list[float]) -> str:
    return f"{1 / median(seconds):,.0f}"
