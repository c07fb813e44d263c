"""`crashproof generate` is asked to stop, asked twice, killed while it writes, or started twice."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash.generation_job import GenerationProcess, settled

from crashproof.testing import Fault, Faults, TeacherServer
from crashproof.testing.teacher_server import FaultTimes

PROMPTS = 120


def job_for(folder: Path, server: TeacherServer, *options: str) -> GenerationProcess:
    prompts = folder / "P.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Question {number}"}) + "\n" for number in range(PROMPTS)))
    return GenerationProcess(prompts=prompts, out=folder / "D.jsonl", base_url=server.base_url, options=options)


def has_seen(server: TeacherServer, num_requests: int) -> Callable[[], bool]:
    return lambda: server.counts.requests >= num_requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_asked_to_stop_it_waits_for_what_is_sent_and_leaves_nothing_in_doubt(tmp_path: Path, number: Any) -> None:
    with TeacherServer(latency_seconds=0.05) as server:
        job = job_for(tmp_path, server)
        stopped = job.kill(has_seen(server, 40), signal_number=number)
        counts, left = settled(server), job.left()

        print(f"{counts.requests} requests, {left.spending.answers} kept, {left.num_in_doubt} in doubt")
        assert (75, False) == (stopped.return_code, job.out.exists())
        assert f"{number.name}: sending no more requests; waiting for those in flight." in stopped.output
        assert f"Stopped: {left.spending.answers} answers are stored. Start the same command again." in stopped.output
        assert (0, counts.answers_computed) == (left.num_in_doubt, left.spending.answers)
        job.run()

    assert PROMPTS == server.counts.answers_computed == len(job.out.read_bytes().splitlines())
    assert [] == job.problems()


def test_asked_twice_it_stops_at_once_and_what_was_sent_is_in_doubt(tmp_path: Path) -> None:
    """The answers would come in a minute; the test's own time limit is less."""
    stalls = Faults(script=[Fault.STALL] * 16, times=FaultTimes(stall_seconds=600.0))
    with TeacherServer(faults=stalls) as server:
        job = job_for(tmp_path, server)
        process = subprocess.Popen(job.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        while not has_seen(server, 16)():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert "waiting for those in flight" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
        left = job.left()

        assert 75 == process.returncode, said
        assert "Traceback" not in said
        assert "in doubt: 16 requests" in said
        assert (0, 16) == (left.spending.answers, left.num_in_doubt)
        job.run()

    assert PROMPTS + 16 == server.counts.answers_computed
    assert 16 == job.left().num_in_doubt
    assert [] == job.problems()


@pytest.mark.parametrize("has_old_output", [False, True], ids=["none before", "an old one before"])
def test_killed_while_it_writes_the_output_it_leaves_the_old_one_or_none(
    tmp_path: Path, has_old_output: bool
) -> None:
    with TeacherServer() as server:
        job = job_for(tmp_path, server)
        job.run()
        complete = job.out.read_bytes()
        if has_old_output:
            job.out.write_bytes(b"old\n")
        else:
            job.out.unlink()
        partial = job.run_folder / "answers.partial.jsonl"
        killed = job.kill(partial.exists, poll_seconds=0.0002)
        left = job.out.read_bytes() if job.out.exists() else None
        print(f"killed: {killed.was_killed}, output there: {left is not None}")
        assert left in (b"old\n" if has_old_output else None, complete)
        job.run()

    assert complete == job.out.read_bytes()
    assert PROMPTS == server.counts.requests == len(complete.splitlines())
    assert not partial.exists()
    assert [] == job.problems()


def test_while_it_works_its_answers_can_be_looked_at_and_a_kill_leaves_them(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> str:
        if body["messages"][0]["content"] == "Question 5":
            raise ValueError("too hard")
        return "It is."

    with TeacherServer(answer, latency_seconds=0.05) as server:
        job = job_for(tmp_path, server, "--concurrency", "2", "--attempts", "1")
        partial, failed = job.run_folder / "answers.partial.jsonl", job.run_folder / "failed.partial.jsonl"
        job.kill(lambda: partial.exists() and len(lines_of(partial)) >= 10 and len(lines_of(failed)) == 1)
        seen, seen_failed = lines_of(partial), lines_of(failed)
        output_was_there = job.out.exists()
        job.run(exit_code=1)

    assert (False, ["Question 5"]) == (output_was_there, [line["prompt"] for line in seen_failed])
    assert 10 <= len(seen) < PROMPTS - 1
    assert seen == lines_of(job.out)[: len(seen)]
    assert PROMPTS - 1 == len(lines_of(job.out))
    assert ["progress"] == [each.name for each in job.run_folder.iterdir()]


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Those that are complete."""
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def test_a_second_job_on_one_output_is_told_who_writes_it(tmp_path: Path) -> None:
    stalls = Faults(script=[Fault.STALL] * 16, times=FaultTimes(stall_seconds=600.0))
    with TeacherServer(faults=stalls) as server:
        job = job_for(tmp_path, server)
        first = subprocess.Popen(job.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not has_seen(server, 16)():
                assert first.poll() is None
                time.sleep(0.01)
            said = job.run(exit_code=2)
        finally:
            first.kill()
            first.wait()

    assert said.startswith(f"crashproof: {job.run_folder} is being written by process {first.pid} on ")
    assert 1 == said.count("\n")
    assert 16 == server.counts.requests
