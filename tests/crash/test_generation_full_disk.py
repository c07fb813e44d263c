"""The disk is full while answers come that are paid for: none of them is lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash.generation_job import GenerationProcess, left_in, settled

from crashproof import ProgressTracker, RunReader, TrackerSettings
from crashproof.disk.files import Disk
from crashproof.errors import CrashproofError
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.client.prices import PriceTable
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.client.retry import RetryPolicy
from crashproof.teacher.jobs.engine import EngineResult, TeacherSettings
from crashproof.teacher.jobs.job import GenerationJob
from crashproof.teacher.jobs.local_engine import LocalEngine
from crashproof.testing import FaultyDisk, TeacherServer, forget_open_runs

NUM_PROMPTS = 8
CONCURRENCY = 4


class DiskWithSpaceLater(FaultyDisk):
    """Full from one operation on, until so many have been refused."""

    def __init__(self, root: Path, scratch: Path, *, fails_at: int | None, num_refusals: int) -> None:
        super().__init__(root, scratch, fails_at=fails_at, error=errno.ENOSPC, lasts=True)
        self._num_refusals = num_refusals

    def _step(self, *, needs_space: bool = False) -> None:
        try:
            super()._step(needs_space=needs_space)
        except OSError:
            self._num_refusals -= 1
            if not self._num_refusals:
                self._fails_at = None
            raise


def job_in(folder: Path, server: TeacherServer) -> GenerationJob:
    prompts = folder / "P.jsonl"
    if not prompts.exists():
        prompts.write_text("".join(json.dumps({"prompt": f"Question {n}"}) + "\n" for n in range(NUM_PROMPTS)))
    return GenerationJob(
        prompts=prompts, out=folder / "D.jsonl", form=RequestForm(base_url=server.base_url, model="teacher")
    )


def ask_all(job: GenerationJob, disk: Disk, *, full_disk_seconds: float) -> EngineResult:
    """As `run_job` does, on a disk of the test's own."""
    settings = TeacherSettings(
        endpoint=Endpoint(base_url=job.form.base_url),
        prices=PriceTable.load(),
        limits=Limits(concurrency=CONCURRENCY),
        retry_policy=RetryPolicy(full_disk_seconds=full_disk_seconds),
    )
    quiet = TrackerSettings(has_heartbeat=False)
    tracker = ProgressTracker(job.folder.progress, job.config(), NUM_PROMPTS, settings=quiet, disk=disk)
    engine = LocalEngine(settings=settings, on_failure=tracker.record_connection_failure)
    asked = engine.ask_all(job, tracker.responses, reasons={}, on_end=tracker.record_job_progress)
    tracker.close()
    return asked


def fail_at(folder: Path, number: int | None, *, num_refusals: int, full_disk_seconds: float) -> tuple[int, int]:
    """Returns what was lost, and how many operations there were."""
    folder.mkdir()
    with TeacherServer() as server:
        job = job_in(folder, server)
        job.folder.root.mkdir()
        disk = DiskWithSpaceLater(job.folder.root, folder / "scratch", fails_at=number, num_refusals=num_refusals)
        try:
            ask_all(job, disk, full_disk_seconds=full_disk_seconds)
        except (CrashproofError, OSError) as refusal:
            print(f"operation {number}: {refusal}")
        forget_open_runs()
        counts, left = server.counts, left_in(job.folder.root)
        assert counts.answers_computed <= left.spending.answers + left.num_in_doubt, f"operation {number}"

        # There is space again.
        assert {} == ask_all(job, Disk(), full_disk_seconds=1.0).reasons
        assert NUM_PROMPTS == len(set(server.counts.by_prompt))
        assert [] == RunReader(job.folder).problems(), f"operation {number}"
    return counts.answers_delivered - left.spending.answers, disk.num_operations


def test_no_paid_answer_is_lost_while_the_disk_is_full_for_a_moment(tmp_path: Path) -> None:
    _, count = fail_at(tmp_path / "whole", None, num_refusals=0, full_disk_seconds=0.0)
    lost = {}
    for number in range(0, count, 3):
        lost[number], _ = fail_at(tmp_path / str(number), number, num_refusals=3, full_disk_seconds=1.0)

    print(f"{count} operations, {len(lost)} of them refused: {sum(lost.values())} answers lost")
    assert {} == {number: num_lost for number, num_lost in lost.items() if num_lost}


@pytest.mark.long
@pytest.mark.parametrize("num_refusals", [1, 2, 5, 9])
def test_no_paid_answer_is_lost_whichever_operation_meets_a_full_disk(tmp_path: Path, num_refusals: int) -> None:
    _, count = fail_at(tmp_path / "whole", None, num_refusals=0, full_disk_seconds=0.0)
    lost = {}
    for number in range(count):
        # Ten tries: more than refusals.
        lost[number], _ = fail_at(tmp_path / str(number), number, num_refusals=num_refusals, full_disk_seconds=3.0)

    print(f"{count} operations, all of them refused: {sum(lost.values())} answers lost")
    assert {} == {number: num_lost for number, num_lost in lost.items() if num_lost}


def test_where_no_space_comes_the_accounts_stay_true_and_the_next_start_goes_on(tmp_path: Path) -> None:
    _, count = fail_at(tmp_path / "whole", None, num_refusals=0, full_disk_seconds=0.0)
    lost = [
        fail_at(tmp_path / str(number), number, num_refusals=-1, full_disk_seconds=0.0)[0]
        for number in range(0, count, 4)
    ]

    print(f"{count} operations, {len(lost)} of them refused for good: {sum(lost)} answers lost, and asked again")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Six megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_job_that_fills_a_real_disk_loses_nothing_and_goes_on_when_there_is_space(small_disk: Path) -> None:
    num_prompts = 300
    prompts = small_disk / "P.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Question {n}"}) + "\n" for n in range(num_prompts)))
    with TeacherServer(lambda body: "long " * 4000) as server:
        job = GenerationProcess(prompts=prompts, out=small_disk / "D.jsonl", base_url=server.base_url)
        said = job.run(exit_code=2)
        counts, left = settled(server), job.left()

        print(f"{counts.answers_computed} answers computed, {left.spending.answers} kept. {said}")
        assert "crashproof: The disk is full: " in said
        assert counts.answers_computed == left.spending.answers
        assert (0, False) == (left.num_in_doubt, job.out.exists())
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        job.run()

    assert num_prompts == server.counts.answers_computed == len(job.out.read_bytes().splitlines())
    assert [] == job.problems()
