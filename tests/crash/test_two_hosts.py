"""Two hosts: two torchrun agents, each with its own processes; all of one are killed at once."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from crashproof import RunReader

pytestmark = pytest.mark.long

STEPS = 12
SETTINGS = [
    *(
        "data.max_length=24",
        "data.on_too_long=truncate",
        "tokenizer.vocab_size=300",
        "teacher.steps=3",
        "teacher.d_model=16",
    ),
    *("teacher.num_heads=2", "teacher.num_layers=2", "student.d_model=16", "student.num_heads=2"),
    *("train.batch_size=4", "train.warmup_steps=4", "train.limit_seconds=20", f"train.steps={STEPS}"),
    *("progress.checkpoint_interval=4", "progress.saves_behind=false", "train.strategy=fsdp"),
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def write_data(path: Path) -> Path:
    chance = random.Random(0)
    words = "killed and started again it goes on as if nothing had happened".split()  # noqa: SIM905
    lines = [{"prompt": f"{number}: ", "teacher_text": " ".join(chance.choices(words, k=8))} for number in range(48)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def host_command(number: int, port: int, data: Path, output_dir: Path) -> list[str]:
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(number)]
    meeting = ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    trainer = ["-m", "training.distill_kd", f"data.path={data}", *SETTINGS, "--output-dir", str(output_dir)]
    return [*agent, *meeting, *trainer]


def start_host(number: int, port: int, data: Path, output_dir: Path) -> Any:
    return subprocess.Popen(
        host_command(number, port, data, output_dir),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_both(data: Path, output_dir: Path, second: Path | None = None) -> list[Any]:
    port = free_port()
    return [start_host(0, port, data, output_dir), start_host(1, port, data, second or output_dir)]


def lose(host: Any) -> None:
    """All of a host's processes at once; torchrun's workers have groups of their own."""
    agent = psutil.Process(host.pid)
    for process in [*agent.children(recursive=True), agent]:
        process.kill()


def ended(hosts: list[Any]) -> list[tuple[int, str]]:
    said = [host.communicate(timeout=150)[1] for host in hosts]
    return [(host.returncode, text) for host, text in zip(hosts, said, strict=True)]


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / f"student_{STEPS}" / "model.safetensors")


def test_a_host_that_is_lost_comes_back_and_the_run_ends_like_the_uninterrupted_one(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.jsonl")
    reference, broken = tmp_path / "reference", tmp_path / "broken"
    assert [0, 0] == [code for code, _ in ended(start_both(data, reference))]

    hosts = start_both(data, broken)
    while hosts[0].poll() is None and not (broken / "checkpoint_4").exists():
        time.sleep(0.02)
    lose(hosts[1])
    lost = ended(hosts)
    resumed = ended(start_both(data, broken))

    assert -signal.SIGKILL == lost[1][0]
    assert 0 != lost[0][0]
    assert [0, 0] == [code for code, _ in resumed], resumed
    expected, found = weights(reference), weights(broken)
    assert [] == [name for name in expected if not torch.equal(expected[name], found[name])]
    reader = RunReader.open(broken)
    assert list(range(1, STEPS + 1)) == [line.step for line in reader.history()]
    assert None is reader.session().replay_differed_at
    assert [] == reader.problems()


def test_a_host_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.jsonl")

    hosts = ended(start_both(data, tmp_path / "run", second=tmp_path / "elsewhere"))

    assert 0 != hosts[1][0]
    assert "does not see the folder that rank 0 has made" in hosts[1][1]
    assert "Let all hosts share the file system of --output-dir" in hosts[1][1]
    assert not (tmp_path / "elsewhere").exists()
