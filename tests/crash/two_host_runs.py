"""Training runs on two hosts whose link is cut, or one of whose ranks stops or lags, at a chosen moment."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
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


def start(network: Network, arguments: Sequence[str], *, moment: str = "", mark: Path = Path()) -> list[Any]:
    """Start torchrun on both hosts; a rank that comes to the moment `rank:step:name` waits there with its mark."""
    return [start_host(host, number, arguments, moment, mark) for number, host in enumerate(network.hosts)]


def start_host(host: Host, number: int, arguments: Sequence[str], moment: str = "", mark: Path = Path()) -> Any:
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(number)]
    meeting = ["--nproc-per-node", "1", "--master-addr", "host-a", "--master-port", str(PORT)]
    environment = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "RANKS_WAIT": moment, "RANKS_MARK": str(mark)}
    return host.start(
        [*agent, *meeting, str(PROGRAM), *arguments],
        env={**os.environ, **environment},
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


def ends(hosts: list[Any], *, since: float, most_seconds: float) -> list[Ended]:
    """Wait until the commands of all hosts have ended."""
    found = []
    for host in hosts:
        said = str(host.communicate(timeout=max(1.0, since + most_seconds - time.monotonic()))[1])
        found.append(Ended(code=host.returncode, said=said, seconds=time.monotonic() - since))
    return found


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / f"student_{STEPS}" / "model.safetensors")
