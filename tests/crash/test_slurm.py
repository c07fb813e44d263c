"""The SLURM example on a cluster of two nodes: what is requeued, what is not, and how it ends."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from network_namespaces import Host
from safetensors.torch import load_file
from slurm_cluster import Job, SlurmCluster, slurm_cluster

from crashproof import RunReader

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "train.sbatch"
OPTIONS = ("--ntasks-per-node=1", "--cpus-per-task=1")
"""What the example's own head says otherwise: eight processes on each node."""
STEPS, INTERVAL = 120, 20
SETTINGS = [
    *("data.max_length=24", "data.on_too_long=truncate", "tokenizer.vocab_size=300", "teacher.steps=3"),
    *("teacher.d_model=16", "teacher.num_heads=2", "teacher.num_layers=2", "student.d_model=16"),
    *("student.num_heads=2", "train.batch_size=4", "train.warmup_steps=4", "train.limit_seconds=20"),
    *(f"train.steps={STEPS}", f"progress.checkpoint_interval={INTERVAL}"),
]
NAMES = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
"""The states that a job does not leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """One run as a job of the cluster."""

    cluster: SlurmCluster
    number: str
    output_dir: Path

    @property
    def log(self) -> str:
        return self.output_dir.with_suffix(".log").read_text()

    def wait_for_checkpoint(self, step: int) -> None:
        deadline = time.monotonic() + 120
        while not (self.output_dir / f"checkpoint_{step}").exists():
            assert self.cluster.job(self.number).state in ("PENDING", "RUNNING"), self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def end(self, most_seconds: float = 300) -> Job:
        """Wait until the job has ended for good."""
        return self.cluster.wait_for(self.number, *NAMES, most_seconds=most_seconds)

    def trainer(self, host: Host) -> psutil.Process:
        (found,) = [each for each in host.processes() if "training.distill_kd" in each.cmdline()[:3]]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """Submits runs of one data file."""

    cluster: SlurmCluster
    data: Path
    folder: Path

    def submit(
        self,
        name: str,
        *overrides: str,
        options: tuple[str, ...] = (),
        script: Path = SCRIPT,
        step_seconds: float = 0.05,
    ) -> TrainingJob:
        """Submit a run; its steps are long enough for something to happen between two of them."""
        output_dir = self.folder / name
        notes = f"--export=ALL,STEP_SECONDS={step_seconds},SAMPLES={output_dir.with_suffix('.samples')}"
        arguments = [f"data.path={self.data}", *SETTINGS, *overrides, "--output-dir", str(output_dir)]
        log = output_dir.with_suffix(".log")
        number = self.cluster.submit(script, arguments, *OPTIONS, notes, *options, output=log)
        return TrainingJob(cluster=self.cluster, number=number, output_dir=output_dir)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    folder = tmp_path_factory.mktemp("slurm")
    chance = random.Random(0)
    words = "killed and started again it goes on as if nothing had happened".split()  # noqa: SIM905
    lines = [{"prompt": f"{number}: ", "teacher_text": " ".join(chance.choices(words, k=8))} for number in range(48)]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with slurm_cluster(folder / "cluster", python_path=Path(__file__).with_name("in_trainers")) as cluster:
        yield Slurm(cluster=cluster, data=data, folder=folder)


@pytest.fixture(scope="module")
def uninterrupted(slurm: Slurm) -> Path:
    job = slurm.submit("uninterrupted", step_seconds=0)
    ended = job.end()
    assert ("COMPLETED", 0, 0) == (ended.state, ended.restarts, ended.exit_code), job.log
    return job.output_dir


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / f"student_{STEPS}" / "model.safetensors")


def samples_by_step(output_dir: Path) -> dict[tuple[int, str], list[int]]:
    """Of each step and rank, what was learned from; each time the same."""
    found: dict[tuple[int, str], list[int]] = {}
    for line in output_dir.with_suffix(".samples").read_text().splitlines():
        report = json.loads(line)
        assert report["samples"] == found.setdefault((report["step"], report["rank"]), report["samples"])
    return found


def assert_ends_like(uninterrupted: Path, job: TrainingJob, *, restarts: int) -> None:
    ended = job.end()
    assert ("COMPLETED", restarts) == (ended.state, ended.restarts), job.log
    expected, found = weights(uninterrupted), weights(job.output_dir)
    assert [] == [name for name in expected if not torch.equal(expected[name], found[name])]
    reference, reader = RunReader.open(uninterrupted), RunReader.open(job.output_dir)
    assert [line.loss for line in reference.history()] == [line.loss for line in reader.history()]
    assert 1 + restarts == len(reader.session().attempts)
    assert samples_by_step(uninterrupted) == samples_by_step(job.output_dir)
    assert None is reader.session().replay_differed_at
    assert [] == reader.problems()


@pytest.mark.parametrize("node", [0, 1])
def test_a_job_whose_process_was_killed_is_requeued_and_ends_like_the_uninterrupted_one(
    slurm: Slurm, uninterrupted: Path, node: int
) -> None:
    job = slurm.submit(f"killed-{node}")
    job.wait_for_checkpoint(INTERVAL)
    job.trainer(slurm.cluster.network.hosts[node]).kill()

    assert_ends_like(uninterrupted, job, restarts=1)
    assert f"task {node}: Killed" in job.log
    assert f"Exit code 137: job {job.number} is requeued" in job.log


def test_a_job_that_is_told_that_its_time_is_up_saves_and_is_requeued(slurm: Slurm, uninterrupted: Path) -> None:
    job = slurm.submit("told")
    job.wait_for_checkpoint(INTERVAL)
    slurm.cluster.cancel(job.number, "--signal=TERM")

    assert_ends_like(uninterrupted, job, restarts=1)
    assert "by SIGTERM. Start the same command again." in job.log
    assert f"Exit code 75: job {job.number} is requeued" in job.log
    assert "preempted" == RunReader.open(job.output_dir).session().attempts[0].how


def test_a_run_longer_than_the_time_limit_takes_several_starts(slurm: Slurm, uninterrupted: Path) -> None:
    """The controller looks twice a minute: it tells the job 30 to 90 s after its start."""
    job = slurm.submit("limited", options=("--time=2", "--signal=TERM@30"), step_seconds=0.4)

    ended = job.end(most_seconds=900)

    assert ended.restarts >= 1, job.log
    assert "by SIGTERM. Start the same command again." in job.log
    assert_ends_like(uninterrupted, job, restarts=ended.restarts)


def test_an_error_that_a_restart_cannot_mend_is_not_requeued(slurm: Slurm) -> None:
    job = slurm.submit("error", "train.no_such_key=1")

    ended = job.end()

    assert ("FAILED", 0, 2) == (ended.state, ended.restarts, ended.exit_code)
    assert "Unknown config key train.no_such_key" in job.log
    assert f"Job {job.number} is not requeued" in job.log


def test_an_error_of_one_process_is_not_requeued(slurm: Slurm) -> None:
    """Rank 0 alone looks into the output folder; the other sees only that it is gone."""
    (slurm.folder / "foreign" / "checkpoint_7").mkdir(parents=True)
    job = slurm.submit("foreign")

    ended = job.end()

    assert ("FAILED", 0, 2) == (ended.state, ended.restarts, ended.exit_code), job.log
    assert "holds checkpoint_7 of a run that crashproof does not know" in job.log


def test_a_job_that_is_lost_again_and_again_is_given_up(slurm: Slurm) -> None:
    script = slurm.folder / "train.sbatch"
    script.write_text(SCRIPT.read_text().replace("most_restarts=20", "most_restarts=1"))
    job = slurm.submit("lost", script=script)
    for step in (INTERVAL, 2 * INTERVAL):
        job.wait_for_checkpoint(step)
        job.trainer(slurm.cluster.network.hosts[1]).kill()

    ended = job.end()

    assert ("FAILED", 1, 137) == (ended.state, ended.restarts, ended.exit_code)
    assert "Exit code 137 after 1 restarts (most_restarts)" in job.log


def test_a_job_that_is_cancelled_stays_cancelled(slurm: Slurm) -> None:
    job = slurm.submit("cancelled")
    job.wait_for_checkpoint(INTERVAL)
    slurm.cluster.cancel(job.number)

    ended = job.end()

    assert ("CANCELLED", 0) == (ended.state, ended.restarts)
    assert "requeued" not in job.log
    assert "preempted" == RunReader.open(job.output_dir).session().attempts[0].how


def test_a_job_whose_node_is_lost_is_requeued_and_runs_once_the_node_is_back(
    slurm: Slurm, uninterrupted: Path
) -> None:
    job = slurm.submit("cut")
    job.wait_for_checkpoint(INTERVAL)
    slurm.cluster.network.cut()
    slurm.cluster.wait_for(job.number, "PENDING")
    slurm.cluster.network.restore()

    assert_ends_like(uninterrupted, job, restarts=1)
