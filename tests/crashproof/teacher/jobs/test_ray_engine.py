"""The same job on a Ray cluster of two workers."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from postgres import PASSWORD, PASSWORD_IN_URL, PostgresServer
from ray_clusters import RayCluster, wait_until

from crashproof import RunReader
from crashproof.testing import Fault, Faults, TeacherServer

KEY = "sk-made-up-for-this-test"


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[RayCluster]:
    with RayCluster() as cluster:
        cluster.add_node()
        cluster.add_node()
        yield cluster


@pytest.fixture
def cluster(ray_cluster: RayCluster) -> str:
    return ray_cluster.address


class Job:
    """Starts `crashproof generate` for 40 prompts, of which 30 differ."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        lines = [{"prompt": f"Question {number % 30}", "id": number} for number in range(40)]
        (folder / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def __call__(self, *given: str, address: str = "") -> subprocess.CompletedProcess[str]:
        with self.start(*given, address=address) as process:
            out, said = process.communicate(timeout=200)
        return subprocess.CompletedProcess(process.args, process.returncode, out, said)

    def start(self, base_url: str, out: str, *more: str, address: str = "") -> subprocess.Popen[str]:
        folder = self._folder
        command = [str(Path(sys.executable).with_name("crashproof")), "generate", "--json"]
        command += ["--prompts", f"{folder}/p.jsonl", "--model", "teacher", "--max-tokens", "20", "--keep-truncated"]
        environment = {**os.environ, "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": KEY, "RAY_ADDRESS": address}
        return subprocess.Popen(
            [*command, "--out", f"{folder}/{out}.jsonl", *more],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_two_workers_pay_once_and_write_what_one_process_writes(cluster: str, job: Job, tmp_path):
    store = f"sqlite:///{tmp_path}/answers.db"
    faults = Faults(seed=3, share=0.2, kinds=(Fault.SERVER_ERROR, Fault.DROP_BEFORE, Fault.OVERLOADED))
    with TeacherServer(faults=faults, latency_seconds=0.02) as server:
        on_ray = job(server.base_url, "ray", "--engine", "ray", "--store", store, address=cluster)
        computed = server.counts.answers_computed
        alone = job(server.base_url, "alone")
        again = job(server.base_url, "again", "--engine", "ray", "--store", store, address=cluster)
        computed_again = server.counts.answers_computed - computed - 30

    assert [0, 0, 0] == [done.returncode for done in (on_ray, alone, again)], on_ray.stderr + again.stderr
    assert (30, 0) == (computed, computed_again)
    assert (tmp_path / "alone.jsonl").read_bytes() == (tmp_path / "ray.jsonl").read_bytes()
    assert (tmp_path / "alone.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    assert 30 == json.loads(on_ray.stdout)["answers_bought"]
    failed = RunReader.open(tmp_path / "ray.run").session()
    assert sum(server.counts.faults.values()) >= failed.connection_failures == failed.connection_retries > 0


def test_a_wrong_key_stops_the_job_with_one_sentence(cluster: str, job: Job, tmp_path):
    with TeacherServer(api_key="sk-another-one-entirely") as server:
        done = job(server.base_url, "d", "--engine", "ray", "--store", f"sqlite:///{tmp_path}/a.db", address=cluster)

    assert 2 == done.returncode
    assert "HTTP 401" in done.stderr
    assert "Traceback" not in done.stderr
    assert "sk-made-up" not in done.stderr


def test_what_the_budget_did_not_allow_is_no_work_that_is_done(cluster: str, job: Job, tmp_path):
    (tmp_path / "prices.yaml").write_text("as_of: 2026-01-01\nmodels: {teacher: {input: 20, output: 120}}\n")
    options = ("--engine", "ray", "--store", f"sqlite:///{tmp_path}/a.db", "--prices", f"{tmp_path}/prices.yaml")
    with TeacherServer() as server:
        done = job(server.base_url, "d", *options, "--budget", "0.02", address=cluster)

    session = RunReader.open(tmp_path / "d.run").session()
    assert 3 == done.returncode, done.stderr
    assert 0 < session.steps_completed < 30
    assert "BudgetExhausted: The budget of $0.020 does not allow" in session.attempts[0].error
    assert "budget_100" in session.alerts_active


def test_without_a_shared_store_it_says_what_is_missing(job):
    done = job("http://127.0.0.1:9/v1", "d", "--engine", "ray")

    assert 2 == done.returncode
    assert "Pass --store." in done.stderr


def test_without_a_cluster_it_says_how_to_start_one(job, tmp_path):
    done = job(
        "http://127.0.0.1:9/v1",
        "d",
        "--engine",
        "ray",
        "--store",
        f"sqlite:///{tmp_path}/a.db",
        address="127.0.0.1:1",
    )

    assert 2 == done.returncode
    assert "ray start --head" in done.stderr


def test_the_cluster_is_told_neither_the_key_nor_the_password(
    ray_cluster: RayCluster, job: Job, postgres: PostgresServer, tmp_path: Path
) -> None:
    with TeacherServer(api_key=KEY, faults=Faults(seed=1, share=0.1, kinds=(Fault.SERVER_ERROR,))) as server:
        options = ("--engine", "ray", "--store", postgres.url())
        done = job(server.base_url, "d", *options, address=ray_cluster.address)

    assert 0 == done.returncode, done.stderr
    logged = b"".join(path.read_bytes() for path in ray_cluster.logs.rglob("*") if path.is_file())
    told = [done.stdout, done.stderr, ray_cluster.jobs(), logged.decode("utf-8", "replace")]
    assert "ray_cluster.driver" in told[2]
    assert [] == [text for secret in (KEY, PASSWORD, PASSWORD_IN_URL) for text in told if secret in text]


def test_asked_to_stop_it_waits_for_what_is_sent_and_the_next_start_goes_on_at_once(
    ray_cluster: RayCluster, job: Job, tmp_path: Path
) -> None:
    options = ("--engine", "ray", "--store", f"sqlite:///{tmp_path}/a.db", "--concurrency", "4")
    with TeacherServer(latency_seconds=0.3) as server:
        with job.start(server.base_url, "d", *options, address=ray_cluster.address) as process:
            wait_until(lambda: server.counts.requests >= 8)
            process.send_signal(signal.SIGTERM)
            out, said = process.communicate(timeout=60)
        stopped = RunReader.open(tmp_path / "d.run").session()
        computed = server.counts.answers_computed
        done = job(server.base_url, "d", *options, address=ray_cluster.address)

    assert 75 == process.returncode, said
    assert "SIGTERM: sending no more requests; waiting for those in flight." in said
    assert ("preempted", None) == (stopped.attempts[0].how, stopped.attempts[0].error)
    assert (True, computed, 0) == tuple(
        json.loads(out)[name] for name in ("is_stopped", "answers_bought", "requests_in_doubt")
    )
    assert (0, 30) == (done.returncode, server.counts.answers_computed), done.stderr


def test_a_cluster_of_another_version_is_told_with_the_way_out(
    ray_cluster: RayCluster, job: Job, tmp_path: Path
) -> None:
    options = ("--engine", "ray", "--store", f"sqlite:///{tmp_path}/a.db")
    installed = version("ray")
    ray_cluster.claim(ray_version="2.49.1")
    try:
        done = job("http://127.0.0.1:9/v1", "d", *options, address=ray_cluster.address)
    finally:
        ray_cluster.claim(ray_version=installed)

    assert (2, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert f"The cluster runs Ray 2.49.1 on Python {platform.python_version()}, and this job Ray {installed}" in (
        done.stderr
    )
    assert "pip install ray==2.49.1" in done.stderr
