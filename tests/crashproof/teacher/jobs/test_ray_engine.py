"""The same job on a Ray cluster of two workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crashproof import RunReader
from crashproof.testing import Fault, Faults, TeacherServer

START_CLUSTER = """
import sys, time
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False,
                                                        "object_store_memory": 100 << 20})
for _ in range(2):
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster():
    process = subprocess.Popen(
        [sys.executable, "-c", START_CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"},
    )
    try:
        line = process.stdout.readline().strip()
        assert ":" in line, process.stderr.read()
        yield line
    finally:
        process.communicate(timeout=60)


@pytest.fixture
def job(tmp_path):
    lines = [{"prompt": f"Question {number % 30}", "id": number} for number in range(40)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(base_url: str, out: str, *more: str, address: str = "") -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("crashproof")), "generate", "--json"]
        command += [
            "--prompts",
            f"{tmp_path}/p.jsonl",
            "--model",
            "teacher",
            "--max-tokens",
            "20",
            "--keep-truncated",
        ]
        command += ["--out", f"{tmp_path}/{out}.jsonl", *more]
        environment = {**os.environ, "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "sk-made-up-for-this-test"}
        if address:
            environment["RAY_ADDRESS"] = address
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def test_two_workers_pay_once_and_write_what_one_process_writes(cluster, job, tmp_path):
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


def test_a_wrong_key_stops_the_job_with_one_sentence(cluster, job, tmp_path):
    with TeacherServer(api_key="sk-another-one-entirely") as server:
        done = job(server.base_url, "d", "--engine", "ray", "--store", f"sqlite:///{tmp_path}/a.db", address=cluster)

    assert 2 == done.returncode
    assert "HTTP 401" in done.stderr
    assert "Traceback" not in done.stderr
    assert "sk-made-up" not in done.stderr


def test_what_the_budget_did_not_allow_is_no_work_that_is_done(cluster, job, tmp_path):
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
