"""Ask from all machines of a Ray cluster.

Each machine runs one asker; the shared store is what they have in common: it joins equal requests, holds the budget,
and gives an answer that a lost machine has brought to whoever does its work again.
"""

# ruff: noqa: E402 - a missing extra is reported before anything of it is imported.

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
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
from crashproof.rules.requests import teacher_request
from crashproof.teacher.client.answers import Answer
from crashproof.teacher.client.client import AsyncTeacher, OnFailure
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.client.synchronous import Teacher
from crashproof.teacher.jobs.generation import FORBIDDEN, REFUSES_ALL, Asked, TeacherSettings
from crashproof.teacher.jobs.job import GenerationJob
from crashproof.teacher.jobs.prompts import Prompt, problem_with_answer
from crashproof.teacher.shared_store.store import SharedStore

require_modules("ray", "ray")

import ray
import ray.data

__all__ = ["RayEngine"]

_SECONDS_TO_KNOCK = 10.0

_ANSWERED, _FAILED, _OVER_BUDGET, _FATAL = "answered", "failed", "over_budget", "fatal"


@dataclass(frozen=True, slots=True, kw_only=True)
class RayEngine:
    """A Ray Data pipeline on the cluster that is running (`RAY_ADDRESS`, else the one of this machine)."""

    settings: TeacherSettings
    store_url: str
    account: str
    on_failure: OnFailure

    def ask_all(self, job: GenerationJob, store: ResponseStore, *, on_end: Callable[[int], None]) -> Asked:
        """See `Engine`; the answers are in the shared store when it returns.

        Raises:
            ConfigError: no cluster is running.
        """
        _join_cluster()
        num_askers = _num_machines()
        concurrency = -(-self.settings.limits.concurrency // num_askers)
        questions = ray.data.from_items(list(_rows(job)))
        ends = questions.map_batches(
            _Asker,
            fn_constructor_kwargs={
                "model": job.form.model,
                "settings": replace(self.settings, limits=_shared(self.settings.limits, concurrency, num_askers)),
                "store_url": self.store_url,
                "account": self.account,
            },
            batch_size=4 * concurrency,
            compute=ray.data.ActorPoolStrategy(size=num_askers),
            scheduling_strategy="SPREAD",
        )
        asked, num_ended = Asked(), 0
        for row in ends.iter_rows():
            for retry_count, reason in msgspec.json.decode(row["failures"]):
                self.on_failure(retry_count, reason)
            _note(asked, row)
            num_ended += row["end"] != _OVER_BUDGET
            on_end(num_ended)
        return asked


class _Asker:
    """One process of the cluster."""

    def __init__(self, *, model: str, settings: TeacherSettings, store_url: str, account: str) -> None:
        # A machine's own key goes first.
        key = os.environ.get("OPENAI_API_KEY") or settings.endpoint.api_key
        self._base_url = settings.endpoint.base_url
        self._store = SharedStore.open(store_url, account=account)
        self._failures: list[tuple[int, str]] = []
        self._teacher = Teacher(
            AsyncTeacher(
                model,
                store=self._store,
                endpoint=Endpoint(base_url=self._base_url, api_key=key),
                prices=settings.prices,
                budget=settings.budget,
                limits=settings.limits,
                patience=settings.patience,
                asks_again=settings.asks_again,
                on_failure=lambda retry_count, error: self._failures.append((retry_count, str(error))),
            )
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Bring the answers of a batch into the store; says how each ended."""
        asked = [self._begun(*row) for row in zip(batch["body"], batch["sample"], batch["text"], strict=True)]
        ends = [_end_of(future) for future in asked]
        # One row of the batch tells of all its failures.
        failures, self._failures = self._failures, []
        return {
            "key": list(batch["key"]),
            "end": [end for end, _ in ends],
            "reason": [reason for _, reason in ends],
            "failures": [msgspec.json.encode(failures).decode(), *["[]"] * (len(ends) - 1)],
        }

    def _begun(self, body: str, sample: int, text: str) -> Future[Answer]:
        prompt = Prompt(line=0, messages=[], text=text or None)
        return self._teacher.begin(
            teacher_request(self._base_url, msgspec.json.decode(body), sample=int(sample)),
            check=lambda answer: problem_with_answer(prompt, answer.message),
        )


def _join_cluster() -> None:
    if ray.is_initialized():
        return
    try:
        _knock(os.environ.get("RAY_ADDRESS", ""))
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, TimeoutError, socket.gaierror) as error:
        raise ConfigError(
            "No Ray cluster is running here.", hint="Start one (`ray start --head`), or set RAY_ADDRESS."
        ) from error


def _knock(address: str) -> None:
    """Find out at once whether somebody is there: Ray itself waits for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_KNOCK).close()


def _num_machines() -> int:
    """Those that can work."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray leaves it so.
    return max(1, len([node for node in nodes if node["Alive"] and node["Resources"].get("CPU")]))


def _rows(job: GenerationJob) -> Iterator[dict[str, Any]]:
    """One row for each request; equal ones are asked once."""
    seen: set[str] = set()
    for question in job.questions():
        request = question.request
        if request.key not in seen:
            seen.add(request.key)
            # As text: a column of a table has one type, and bodies have many.
            body = msgspec.json.encode(request.body).decode()
            text = question.prompt.text or ""
            yield {"key": request.key, "sample": request.sample, "body": body, "text": text}


def _shared(limits: Limits, concurrency: int, num_askers: int) -> Limits:
    """One asker's part of what the job may do."""

    def part(most: int | None) -> int | None:
        return None if most is None else max(1, most // num_askers)

    return Limits(
        concurrency=concurrency,
        requests_per_minute=part(limits.requests_per_minute),
        tokens_per_minute=part(limits.tokens_per_minute),
    )


def _end_of(future: Future[Answer]) -> tuple[str, str]:
    try:
        future.result()
    except AnswerUnusable as error:
        return _FAILED, error.problem
    except BudgetExhausted as error:
        return _OVER_BUDGET, error.message
    except TeacherUnreachable as error:
        return _FAILED, str(error)
    except TeacherRefused as error:
        return (_FATAL if error.status in REFUSES_ALL | {FORBIDDEN} else _FAILED), str(error)
    except CrashproofError as error:
        return _FATAL, str(error)
    return _ANSWERED, ""


def _note(asked: Asked, row: dict[str, Any]) -> None:
    if row["end"] == _FATAL:
        raise TeacherError(row["reason"])
    if row["end"] == _OVER_BUDGET:
        asked.over_budget = BudgetExhausted(row["reason"])
        asked.reasons[row["key"]] = str(asked.over_budget)
    elif row["end"] != _ANSWERED:
        asked.reasons[row["key"]] = row["reason"]
