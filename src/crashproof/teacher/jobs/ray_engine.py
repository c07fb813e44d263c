"""Send a job's requests from a Ray cluster.

Each machine runs one worker. They share the store, which deduplicates requests, enforces the budget, and serves the
answers of a lost machine to the worker that takes over.
"""

# ruff: noqa: E402 - a missing extra is reported before anything of it is imported.

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import msgspec

from crashproof.answers.store import ResponseStore
from crashproof.errors import (
    AnswerUnusable,
    BudgetExhausted,
    ConfigError,
    CrashproofError,
    TeacherError,
    TeacherRefused,
    TeacherUnreachable,
)
from crashproof.optional_dependencies import require_modules
from crashproof.rules.requests import JsonObject, teacher_request
from crashproof.teacher.client.answers import Answer
from crashproof.teacher.client.client import OnFailure
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.client.synchronous import Teacher
from crashproof.teacher.jobs.engine import EngineResult, TeacherSettings
from crashproof.teacher.jobs.job import GenerationJob
from crashproof.teacher.jobs.local_engine import FORBIDDEN
from crashproof.teacher.jobs.prompts import Prompt, problem_with_answer
from crashproof.teacher.shared_store.store import SharedStore

require_modules("ray", "ray")

import ray
import ray.data

__all__ = ["RayEngine"]

_CONNECT_SECONDS = 10.0


class _End(StrEnum):
    ANSWERED = "answered"
    FAILED = "failed"
    OVER_BUDGET = "over_budget"
    FATAL = "fatal"


@dataclass(frozen=True, slots=True, kw_only=True)
class RayEngine:
    """A Ray Data pipeline on a running cluster (`RAY_ADDRESS`, or else the local one)."""

    settings: TeacherSettings
    store_url: str
    account: str
    on_failure: OnFailure

    def ask_all(
        self,
        job: GenerationJob,
        store: ResponseStore,
        *,
        reasons: MutableMapping[str, str],
        on_end: Callable[[int], None],
    ) -> EngineResult:
        """See `Engine`; the answers are in the shared store when it returns.

        Raises:
            ConfigError: no cluster is running.
        """
        _join_cluster()
        num_workers = _num_machines()
        concurrency = -(-self.settings.limits.concurrency // num_workers)
        questions = ray.data.from_items(list(_rows(job)))
        ends = questions.map_batches(
            _Worker,
            fn_constructor_kwargs={
                "form": job.form,
                "keeps_truncated": job.keeps_truncated,
                "settings": replace(self.settings, limits=_divide(self.settings.limits, concurrency, num_workers)),
                "store_url": self.store_url,
                "account": self.account,
            },
            batch_size=4 * concurrency,
            compute=ray.data.ActorPoolStrategy(size=num_workers),
            scheduling_strategy="SPREAD",
        )
        asked, num_ended = EngineResult(reasons=reasons), 0
        for row in ends.iter_rows():
            for retry_count, reason in msgspec.json.decode(row["failures"]):
                self.on_failure(retry_count, reason)
            _note(asked, row)
            num_ended += row["end"] != _End.OVER_BUDGET
            on_end(num_ended)
        return asked


class _Worker:
    """A worker process of the cluster."""

    def __init__(
        self, *, form: RequestForm, keeps_truncated: bool, settings: TeacherSettings, store_url: str, account: str
    ) -> None:
        # The key of the worker's machine takes precedence.
        usual = None if settings.endpoint.has_key_in_header else os.environ.get("OPENAI_API_KEY")
        key = usual or settings.endpoint.api_key
        self._base_url = settings.endpoint.base_url
        self._store = SharedStore.open(store_url, account=account)
        self._failures: list[tuple[int, str]] = []
        settings = replace(settings, endpoint=replace(settings.endpoint, api_key=key))
        self._teacher = Teacher(settings.open(form, self._store, self._note_failure, keeps_truncated=keeps_truncated))

    def __call__(self, batch: dict[str, Sequence[Any]]) -> dict[str, list[str]]:
        """Obtain the answers of a batch into the store; returns how each request ended."""
        futures = [self._begin(*row) for row in zip(batch["body"], batch["sample"], batch["text"], strict=True)]
        ends = [_wait_for_end(future) for future in futures]
        # The first row carries the failures of the whole batch.
        failures, self._failures = self._failures, []
        return {
            "key": list(batch["key"]),
            "end": [end.value for end, _ in ends],
            "reason": [reason for _, reason in ends],
            "failures": [msgspec.json.encode(failures).decode(), *["[]"] * (len(ends) - 1)],
        }

    def _note_failure(self, retry_count: int, error: object) -> None:
        self._failures.append((retry_count, str(error)))

    def _begin(self, body: str, sample: int, text: str) -> Future[Answer]:
        prompt = Prompt(line=0, messages=[], text=text or None)
        return self._teacher.begin(
            teacher_request(self._base_url, msgspec.json.decode(body), sample=int(sample)),
            check=lambda answer: problem_with_answer(prompt, answer.message),
        )


def _join_cluster() -> None:
    if ray.is_initialized():
        return
    try:
        _check_reachable(os.environ.get("RAY_ADDRESS", ""))
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, TimeoutError, socket.gaierror) as error:
        raise ConfigError(
            "No Ray cluster is running.", hint="Start one (`ray start --head`), or set RAY_ADDRESS."
        ) from error


def _check_reachable(address: str) -> None:
    """Fail at once if nothing listens there: Ray itself waits for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def _num_machines() -> int:
    """Count the live machines with CPUs."""
    nodes: list[JsonObject] = ray.nodes()  # type: ignore[no-untyped-call]  # Untyped in Ray.
    return max(1, len([node for node in nodes if node["Alive"] and node["Resources"].get("CPU")]))


def _rows(job: GenerationJob) -> Iterator[dict[str, str | int]]:
    """Yield a row for each distinct request."""
    for question in job.distinct_questions():
        request = question.request
        # As JSON: a column has one type, and bodies differ.
        body = msgspec.json.encode(request.body).decode()
        text = question.prompt.text or ""
        yield {"key": request.key, "sample": request.sample, "body": body, "text": text}


def _divide(limits: Limits, concurrency: int, num_workers: int) -> Limits:
    """One worker's part of the job's limits."""

    def part(most: int | None) -> int | None:
        return None if most is None else max(1, most // num_workers)

    return Limits(
        concurrency=concurrency,
        requests_per_minute=part(limits.requests_per_minute),
        tokens_per_minute=part(limits.tokens_per_minute),
    )


def _wait_for_end(future: Future[Answer]) -> tuple[_End, str]:
    try:
        future.result()
    except AnswerUnusable as error:
        return _End.FAILED, error.problem
    except BudgetExhausted as error:
        return _End.OVER_BUDGET, error.message
    except TeacherUnreachable as error:
        return (_End.FATAL if error.hits_all else _End.FAILED), str(error)
    except TeacherRefused as error:
        is_fatal = error.hits_all or error.status == FORBIDDEN
        return (_End.FATAL if is_fatal else _End.FAILED), str(error)
    except CrashproofError as error:
        return _End.FATAL, str(error)
    return _End.ANSWERED, ""


def _note(asked: EngineResult, row: dict[str, str]) -> None:
    if row["end"] == _End.FATAL:
        raise TeacherError(row["reason"])
    if row["end"] == _End.OVER_BUDGET:
        asked.over_budget = BudgetExhausted(row["reason"])
        asked.reasons[row["key"]] = str(asked.over_budget)
    elif row["end"] != _End.ANSWERED:
        asked.reasons[row["key"]] = row["reason"]
