"""Training runs on two hosts whose link is cut, or one of whose ranks stops or lags, at a chosen moment."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from network_namespaces import Host, Network
from safetensors.torch import load_file

STEPS = 12
LIMIT_SECONDS = 8
SETTINGS = [
    *("data.max_length=24", "data.on_too_long=truncate", "tokenizer.vocab_size=300", "teacher.steps=3"),
    *("teacher.d_model=16", "teacher.num_heads=2", "teacher.num_layers=2"),
    *("student.d_model=16", "student.num_heads=2", "train.batch_size=4", "train.warmup_steps=4"),
    *(f"train.limit_seconds={LIMIT_SECONDS}", f"train.steps={STEPS}", "progress.checkpoint_interval=4"),
]
PROGRAM = Path(__file__).with_name("ranks_program.py")
PORT = 29400


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How one host's command ended."""

    code: int
    said: str
    seconds: float
    """From the loss on."""


def write_data(path: Path) -> Path:
    chance = random.Random(0)
    words = "killed and started again it goes on as if nothing had happened".split()  # noqa: SIM905
    lines = [{"prompt": f"{number}: ", "teacher_text": " ".join(chance.choices(words, k=8))} for number in range(48)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """How the two agents of torchrun find each other."""

    by_number: tuple[str, ...] = ("--master-addr", "host-a", "--master-port", str(PORT))

    def options(self, number: int) -> list[str]:
        return ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number), *self.by_number]


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticMeeting(Meeting):
    def options(self, number: int) -> list[str]:
        place = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"host-a:{PORT}", "--rdzv-id", "two"]
        return ["--nnodes", "2", "--nproc-per-node", "1", *place]


def start(
    network: Network, arguments: Sequence[str], *, meeting: Meeting | None = None, **environment: str
) -> list[Any]:
    """Start torchrun on both hosts; the environment tells what is to happen at which moment."""
    meeting = meeting or Meeting()
    return [
        _start_host(host, meeting.options(number), arguments, environment)
        for number, host in enumerate(network.hosts)
    ]


def _start_host(host: Host, options: list[str], arguments: Sequence[str], environment: dict[str, str]) -> Any:
    agent = [sys.executable, "-m", "torch.distributed.run", *options]
    quiet = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return host.start(
        [*agent, str(PROGRAM), *arguments],
        env={**os.environ, **quiet, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_mark(mark: Path, hosts: list[Any]) -> None:
    deadline = time.monotonic() + 120
    while not mark.exists():
        assert [None, None] == [host.poll() for host in hosts], [host.communicate()[1] for host in hosts]
        assert time.monotonic() < deadline, "no rank has come to the moment"
        time.sleep(0.02)


def ends(hosts: list[Any], *, since: float, most_seconds: float = 100) -> list[Ended]:
    """Wait until the commands of all hosts have ended."""
    with ThreadPoolExecutor(len(hosts)) as pool:
        return list(pool.map(lambda host: _end_of(host, since, most_seconds), hosts))


def _end_of(host: Any, since: float, most_seconds: float) -> Ended:
    said = str(host.communicate(timeout=max(1.0, since + most_seconds - time.monotonic()))[1])
    return Ended(code=host.returncode, said=said, seconds=time.monotonic() - since)


def code_of_rank(ended: Ended) -> int:
    """The exit code of the rank itself, which torchrun reports."""
    found = re.search(r"exitcode  : (-?\d+)", ended.said)
    assert found is not None, ended.said
    return int(found[1])


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / f"student_{STEPS}" / "model.safetensors")
