"""A paid teacher for a training run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from crashproof.answers.store import ResponseStore
from crashproof.disk.run_folder import RunFolder
from crashproof.distillation.settings.api_teacher import ApiTeacherFields
from crashproof.rules.requests import deciding_parameters
from crashproof.teacher import AsyncTeacher, Endpoint, Limits, PriceTable, RetryPolicy, Teacher
from crashproof.teacher.shared_store.accounts import account_of
from crashproof.teacher.shared_store.fallback import SpooledStore
from crashproof.tracking.tracker import ProgressTracker

__all__ = ["identifying_fields", "open_teacher"]

_SECONDS_PER_HOUR = 3600.0


@contextmanager
def open_teacher(config: ApiTeacherFields, tracker: ProgressTracker) -> Iterator[Teacher]:
    """Open the teacher, which keeps its answers in the run's store or a shared one.

    On exit, requests under way are waited for: they are paid for anyway.

    Raises:
        ConfigError, UnknownPrice, StoreUnavailable: the teacher cannot be used.
    """
    assert config.model is not None
    endpoint, prices, model = _endpoint(config), PriceTable.load(config.prices), config.model
    with _open_store(config, tracker) as store:
        teacher = Teacher(
            AsyncTeacher(
                model,
                store=store,
                endpoint=endpoint,
                prices=prices,
                budget=config.budget,
                limits=Limits(concurrency=config.concurrency),
                retry_policy=RetryPolicy(
                    attempts=config.attempts,
                    deadline_seconds=config.deadline_hours * _SECONDS_PER_HOUR,
                    first_byte_seconds=config.first_byte_seconds,
                    between_chunks_seconds=config.between_chunks_seconds,
                ),
                parameters=config.request_parameters(),
                keeps_truncated=config.keep_truncated,
                on_failure=tracker.record_connection_failure,
            )
        )
        try:
            yield teacher
        finally:
            teacher.close(waits=True)
            if config.store is not None:
                tracker.record_spending(store.spending())


@contextmanager
def _open_store(config: ApiTeacherFields, tracker: ProgressTracker) -> Iterator[ResponseStore]:
    if config.store is None:
        yield tracker.responses
        return
    from crashproof.teacher.shared_store.store import SharedStore

    folder = RunFolder(tracker.session_file.parent)
    shared = SharedStore.open(config.store, account=account_of(folder), run_lock=folder.lock)
    try:
        yield SpooledStore(shared, spool=tracker.responses)
    finally:
        shared.close()


def identifying_fields(config: ApiTeacherFields) -> dict[str, object]:
    """The part of the config that decides the answers: where it differs, it is another run."""
    fields: dict[str, object] = {
        "kind": "api",
        "model": config.model,
        "base_url": _endpoint(config).base_url,
        "parameters": deciding_parameters(config.request_parameters()),
    }
    return fields | ({"keep_truncated": True} if config.keep_truncated else {})


def _endpoint(config: ApiTeacherFields) -> Endpoint:
    return Endpoint.of(os.environ, base_url=config.base_url, headers=config.headers, query=config.query)
