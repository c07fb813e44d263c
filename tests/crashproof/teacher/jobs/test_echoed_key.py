"""A server that echoes the key: nothing of it reaches a file or a log."""

from __future__ import annotations

import base64
import contextlib
import html
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest

from crashproof.errors import TeacherUnreachable
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.client.prices import PriceTable
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.client.retry import RetryPolicy
from crashproof.teacher.jobs.engine import TeacherSettings
from crashproof.teacher.jobs.generation import JobResult, run_job
from crashproof.teacher.jobs.job import GenerationJob
from crashproof.teacher.jobs.local_engine import LocalEngine
from crashproof.testing import Fault, Faults, KeyEcho, TeacherServer

# Of no known shape, so that only the exact match can find it.
KEY = "correct-horse/battery+staple"
TABLE = "as_of: 2026-01-01\nmodels: {teacher: {input: 0.15, output: 0.60}}\n"
FAULTS = (Fault.SERVER_ERROR, Fault.ERROR_BODY, Fault.RATE_LIMITED, None, Fault.BROKEN_JSON, None)


class Silent:
    def advance(self, *_: object) -> None:
        pass


def unescape(text: str) -> str:
    return re.sub(r"\\+u([0-9A-Fa-f]{4})", lambda match: chr(int(match[1], 16)), text).replace("\\/", "/")


def readings(text: str) -> set[str]:
    """All that a text says to whoever undoes its escapes, several times over."""
    found, new = set(), {text}
    for _ in range(4):
        found |= new
        new = {undo(each) for each in new for undo in (unquote, html.unescape, unescape)} - found
    return found | new


def is_in(key: str, text: str) -> bool:
    inner = base64.b64encode(f"Bearer {key}".encode()).decode()[10:-4]
    return inner in text or any(key in each for each in readings(text))


@pytest.fixture
def ask(tmp_path: Path) -> Callable[[KeyEcho], JobResult]:
    """Ask a server that echoes the key, and fails some requests for good."""

    def ask_all(echo: KeyEcho) -> JobResult:
        prompts = tmp_path / "P.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": f"Question {n}"}) + "\n" for n in range(6)))
        table = tmp_path / "prices.yaml"
        table.write_text(TABLE)
        with TeacherServer(faults=Faults(script=FAULTS), api_key=KEY, echoes_key=echo) as server:
            form = RequestForm(base_url=server.base_url, model="teacher", parameters={"max_tokens": 40})
            settings = TeacherSettings(
                endpoint=Endpoint(base_url=server.base_url, api_key=KEY),
                prices=PriceTable.load(table),
                limits=Limits(concurrency=1),
                retry_policy=RetryPolicy(attempts=1),
            )
            return run_job(
                GenerationJob(prompts=prompts, out=tmp_path / "D.jsonl", form=form),
                lambda on_failure: LocalEngine(settings=settings, on_failure=on_failure),
                progress=Silent(),
                shared_store=None,
            )

    return ask_all


@pytest.mark.parametrize("echo", KeyEcho)
def test_an_echoed_key_reaches_no_file_and_no_log(ask, echo, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="crashproof")

    # Pages only: the job gives up, and says so in its files.
    with contextlib.suppress(TeacherUnreachable):
        ask(echo)

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"api_recovery.jsonl", "api_requests.jsonl", "events.jsonl"} <= {path.name for path in files}
    assert (echo is not KeyEcho.PAGE) == any("failed" in path.name for path in files)
    assert any("***" in path.read_text(errors="replace") for path in files)
    assert [] == [path.name for path in files if is_in(KEY, path.read_text(errors="replace"))]
    assert not is_in(KEY, caplog.text)


@pytest.mark.parametrize("echo", [each for each in KeyEcho if each is not KeyEcho.PAGE])
def test_answers_are_kept_with_all_but_the_key(ask, echo, tmp_path):
    result = ask(echo)

    assert result.written is not None
    assert 2 <= result.written.num_answers
    written = (tmp_path / "D.jsonl").read_text()
    assert "***" in written
    assert not is_in(KEY, written)
