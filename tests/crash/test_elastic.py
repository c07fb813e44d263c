"""Two hosts, one of which is lost and comes back: the run goes on with what there is."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from network_namespaces import Host, Network, two_hosts
from safetensors.torch import load_file

from crashproof import RunReader

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "elastic.sh"
NUM_SAMPLES, STEPS, INTERVAL = 48, 240, 20
SETTINGS = [
    *("data.max_length=24", "data.on_too_long=truncate", "tokenizer.vocab_size=300", "teacher.steps=3"),
    *("teacher.d_model=16", "teacher.num_heads=2", "teacher.num_layers=2", "student.d_model=16"),
    *("student.num_heads=2", "train.batch_size=4", "train.warmup_steps=4", "train.limit_seconds=10"),
    *(f"train.steps={STEPS}", f"progress.checkpoint_interval={INTERVAL}"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticRun:
    """A run on two hosts that are started and lost one by one; `endpoint` is the host where they meet."""

    network: Network
    data: Path
    output_dir: Path
    endpoint: int = 0
    step_seconds: float = 0.15
    started: list[Any] = field(default_factory=list)

    def start(self, number: int, program: Path = SCRIPT) -> Any:
        """Start a host's part."""
        host = self.network.hosts[number]
        arguments = [f"data.path={self.data}", *SETTINGS, "--output-dir", str(self.output_dir)]
        with self.log(host).open("a") as log:
            process = host.start(
                [program, *arguments], env=self._environment(), stdout=subprocess.DEVNULL, stderr=log
            )
        self.started.append(process)
        return process

    def _environment(self) -> dict[str, str]:
        python = {
            # The tests' own Python is the script's `python`; each trainer writes down what it learns from.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(map(str, [Path(__file__).with_name("in_trainers"), ROOT / "src", ROOT])),
            "OMP_NUM_THREADS": "1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        meeting = {"ENDPOINT": f"{self.network.hosts[self.endpoint].name}:29500", "WAIT_SECONDS": "5"}
        notes = {"SAMPLES": str(self.samples), "STEP_SECONDS": str(self.step_seconds)}
        return {**os.environ, **python, **meeting, **notes, "PROCESSES": "1"}

    @property
    def samples(self) -> Path:
        return self.output_dir.with_suffix(".samples")

    def log(self, host: Host) -> Path:
        return self.output_dir.with_suffix(f".{host.name}.log")

    def wait_for_step(self, num_ranks: int, *, beyond: int = 0) -> int:
        """Wait for a step that so many ranks have begun together, and return it."""
        return self._wait(lambda: max(self._steps_of(num_ranks), default=0), above=beyond)

    def wait_for_checkpoint(self, step: int) -> None:
        self._wait(lambda: int((self.output_dir / f"checkpoint_{step}").exists()), above=0)

    def _wait(self, look: Callable[[], int], *, above: int) -> int:
        deadline = time.monotonic() + 200
        while (seen := look()) <= above:
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)
        return seen

    def _steps_of(self, num_ranks: int) -> list[int]:
        return [line["step"] for line in self.reports() if line["num_ranks"] == num_ranks]

    def reports(self) -> list[dict[str, Any]]:
        """Who began which step with which samples, in the order of time."""
        text = self.samples.read_text() if self.samples.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def end(self) -> list[int]:
        """Wait until all hosts' commands have ended."""
        return [process.wait(timeout=300) for process in self.started]

    def said(self) -> str:
        return "\n".join(self.log(host).read_text() for host in self.network.hosts if self.log(host).exists())

    def learned_from(self) -> dict[int, list[int]]:
        """Of each step, the samples of all ranks of the attempt that made it last."""
        by_step: dict[int, dict[str, dict[str, Any]]] = {}
        for report in self.reports():
            ranks = by_step.setdefault(report["step"], {})
            if any(each["num_ranks"] != report["num_ranks"] for each in ranks.values()):
                ranks.clear()
            ranks[report["rank"]] = report
        for step, ranks in by_step.items():
            assert {each["num_ranks"] for each in ranks.values()} == {len(ranks)}, (step, ranks)
        return {
            step: [index for each in ranks.values() for index in each["samples"]] for step, ranks in by_step.items()
        }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    chance = random.Random(0)
    words = "killed and started again it goes on as if nothing had happened".split()  # noqa: SIM905
    lines = [
        {"prompt": f"{number}: ", "teacher_text": " ".join(chance.choices(words, k=8))}
        for number in range(NUM_SAMPLES)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def network() -> Iterator[Network]:
    with two_hosts() as network:
        yield network


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    with two_hosts() as network:
        run = ElasticRun(network=network, data=data, output_dir=folder / "run", step_seconds=0)
        run.start(0)
        run.start(1)
        assert [0, 0] == run.end(), run.said()
    return run.output_dir


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / f"student_{STEPS}" / "model.safetensors")


def assert_ended_like(uninterrupted: Path, run: ElasticRun) -> None:
    for name, weight in weights(uninterrupted).items():
        # The same numbers, added up in another order for as long as there was one host.
        torch.testing.assert_close(weights(run.output_dir)[name], weight, rtol=1e-3, atol=1e-4)
    reader = RunReader.open(run.output_dir)
    assert list(range(1, STEPS + 1)) == [line.step for line in reader.history()]
    assert [] == reader.problems()
    learned = run.learned_from()
    assert list(range(1, STEPS + 1)) == sorted(learned)
    times = Counter(index for indices in learned.values() for index in indices)
    assert dict.fromkeys(range(NUM_SAMPLES), 4 * STEPS // NUM_SAMPLES) == dict(times)


@pytest.mark.parametrize("endpoint, lost", [(0, 1), (1, 0)], ids=["last rank", "rank 0"])
def test_a_host_that_is_cut_off_is_done_without_until_it_is_back(
    network: Network, data: Path, uninterrupted: Path, tmp_path: Path, endpoint: int, lost: int
) -> None:
    run = ElasticRun(network=network, data=data, output_dir=tmp_path / "run", endpoint=endpoint)
    run.start(0)
    run.start(1)
    run.wait_for_checkpoint(INTERVAL)
    network.cut(lost)
    alone = run.wait_for_step(1, beyond=INTERVAL + 10)
    network.restore(lost)
    together = run.wait_for_step(2, beyond=alone)

    assert [0, 0] == run.end(), run.said()
    print(f"alone by step {alone}, together again by step {together}")
    assert_ended_like(uninterrupted, run)


def test_a_host_that_is_back_before_it_was_missed_is_taken_in(
    network: Network, data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """A power loss of seconds: no connection was closed, and the others still wait."""
    run = ElasticRun(network=network, data=data, output_dir=tmp_path / "run")
    run.start(0)
    lost = run.start(1)
    run.wait_for_checkpoint(INTERVAL)
    network.cut()
    for process in network.hosts[1].processes():
        process.kill()
    lost.wait()
    run.started.remove(lost)
    network.restore()
    run.start(1)

    assert [0, 0] == run.end(), run.said()
    assert_ended_like(uninterrupted, run)


def test_torchrun_starts_two_hosts_again_when_a_process_was_killed(
    network: Network, data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Each host's torchrun counts its own restarts, and one of them sees no failure: the counts differ."""
    again = tmp_path / "again.sh"
    agent = "-m torch.distributed.run --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --max-restarts 3"
    again.write_text(
        f'#!/bin/sh\nexec python {agent} --rdzv-endpoint "$ENDPOINT" --rdzv-id 1 -m training.distill_kd "$@"\n'
    )
    again.chmod(0o755)
    run = ElasticRun(network=network, data=data, output_dir=tmp_path / "run", step_seconds=0.05)
    run.start(0, again)
    run.start(1, again)
    run.wait_for_checkpoint(INTERVAL)
    (trainer,) = [each for each in network.hosts[1].processes() if "training.distill_kd" in each.cmdline()[:4]]
    trainer.kill()

    assert [0, 0] == run.end(), run.said()
    assert_ended_like(uninterrupted, run)
    assert [] == [
        name for name, each in weights(uninterrupted).items() if not torch.equal(each, weights(run.output_dir)[name])
    ]
