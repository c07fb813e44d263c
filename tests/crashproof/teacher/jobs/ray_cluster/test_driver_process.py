"""The process in which Ray lives, as the job sees it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from crashproof.errors import CrashproofError, StoreUnavailable, TeacherError
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.prices import PriceTable
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.jobs.engine import EngineResult, TeacherSettings
from crashproof.teacher.jobs.job import GenerationJob
from crashproof.teacher.jobs.ray_engine import RayEngine
from crashproof.teacher.shared_store.store import SharedStore

URL = "http://teacher/v1"
# A driver that does what a line says; `channel` is its end of the socket, and `task` what it is to do.
DRIVER = """
import asyncio, os, signal, socket, sys
from crashproof.errors import *
from crashproof.teacher.jobs.engine import EngineResult
from crashproof.teacher.jobs.ray_cluster.channel import Channel
from crashproof.teacher.jobs.ray_cluster.messages import *

async def main():
    channel = await Channel.over(socket.socket(fileno=os.dup(0)))
    task = await channel.read()
    {does}
    await channel.close()

asyncio.run(main())
"""


class Job:
    """A job with a driver that is told what to do."""

    def __init__(self, folder: Path) -> None:
        self.store_url = f"sqlite:///{folder}/answers.db"
        self.finished: list[int] = []
        self.failures: list[tuple[int, object]] = []
        (folder / "P.jsonl").write_text(json.dumps({"prompt": "Why?"}) + "\n")
        form = RequestForm(base_url=URL, model="teacher", parameters={})
        self.job = GenerationJob(prompts=folder / "P.jsonl", out=folder / "D.jsonl", form=form)

    def run(self, *does: str) -> EngineResult:
        engine = RayEngine(
            settings=TeacherSettings(endpoint=Endpoint(base_url=URL), prices=PriceTable.load()),
            store_url=self.store_url,
            account="us",
            on_failure=lambda retries, reason: self.failures.append((retries, reason)),
            driver=[sys.executable, "-c", DRIVER.format(does="\n    ".join(does))],
        )
        with SharedStore.open(self.store_url, account="us") as store:
            return engine.ask_all(self.job, store, reasons={}, on_end=self.finished.append)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


FINISH = "channel.write(Finished(asked=EngineResult(note='all')))"


def test_what_it_tells_is_passed_on_in_order(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    asked = job.run(
        "assert 'us' == task.account",
        "channel.write(Progress(num_finished=1, failures=[(1, 'HTTP 503')]))",
        "channel.write(Said(level=30, text='Lost an asker: 100 %.'))",
        "channel.write(Progress(num_finished=2, failures=[], reasons={'key': 'why'}))",
        FINISH,
    )

    assert ({"key": "why"}, "all") == (asked.reasons, asked.note)
    assert ([1, 2], [(1, "HTTP 503")]) == (job.finished, job.failures)
    assert ["Lost an asker: 100 %."] == caplog.messages


def test_what_ray_prints_reaches_no_stream_of_the_job_and_is_counted(
    job: Job, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    job.run("for _ in range(500): print('(raylet) noise', flush=True); print('noise ' * 99, file=sys.stderr)", FINISH)

    assert ("", "") == capfd.readouterr()
    assert ["Ray printed 1000 lines of its own; they are left out here, its logs have more."] == caplog.messages


def test_its_error_is_raised_as_what_it_is(job: Job) -> None:
    with pytest.raises(StoreUnavailable, match="connection refused"):
        job.run("channel.write(Failed(error=StoreUnavailable('db', reason='connection refused')))")


@pytest.mark.parametrize(
    ("does", "problem"),
    [
        ("os.kill(os.getpid(), 9)", r"The process that asks from the Ray cluster ended by SIGKILL\."),
        ("print('RuntimeError: what it was', flush=True); os._exit(1)", r"exit code 1\. RuntimeError: what it was"),
        ("print('E Failed to connect to GCS', flush=True); os._exit(1)", r"The head of the Ray cluster is gone\."),
    ],
    ids=["signal", "last words", "no head"],
)
def test_its_death_is_an_error_that_says_how(job: Job, does: str, problem: str) -> None:
    with pytest.raises(TeacherError, match=problem) as death:
        job.run(does)

    assert "start the same command again; every answer so far is kept." in str(death.value)


def test_signals_are_passed_on_as_orders(job: Job) -> None:
    def send() -> None:
        for _ in range(2):
            time.sleep(1.0)
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    asked = job.run(
        "assert Order.STOP == await channel.read()",
        "assert Order.GIVE_UP == await channel.read()",
        "channel.write(Finished(asked=EngineResult(is_stopped=True)))",
    )

    assert asked.is_stopped


def test_an_error_of_the_job_is_raised_once_the_driver_has_ended(job: Job, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    job.finished = Full()

    with pytest.raises(CrashproofError, match="The disk is full"):
        job.run(
            "channel.write(Progress(num_finished=1, failures=[]))",
            "assert await channel.read() is None",
            "await asyncio.sleep(0.5)",
            f"open({str(ended)!r}, 'w').close()",
        )

    assert ended.exists()


class Full(list[int]):
    """A run whose disk is full."""

    def append(self, number: int) -> None:
        raise CrashproofError("The disk is full.")
