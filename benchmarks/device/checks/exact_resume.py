"""Killed and resumed, bit for bit the same."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.device.rows import Row, Verdict, found_or_failed
from benchmarks.device.running import ROOT
from benchmarks.device.sizes import Size, TrainerSize
from crashproof import RunReader
from crashproof.testing import run_and_kill

__all__ = ["check", "differences", "has_reached", "nondeterministic", "settings_of", "write_data"]

_WORDS = "killed and started again it goes on as if nothing at all had ever happened to it".split()  # noqa: SIM905
_MOST_NAMED = 3
_NOT_DETERMINISTIC = re.compile(
    r"([A-Za-z0-9_ ]+?) (?:defaults to a non-deterministic algorithm|does not have a deterministic implementation)"
)
_START_SECONDS = 90.0


def check(size: Size, work: Path) -> Iterator[Row]:
    """`distill_kd` in both half precisions: uninterrupted, and killed with SIGKILL and started again."""
    data = write_data(work / "data.jsonl", size.exact)
    for precision in size.precisions:
        what = f"{precision}{' with GradScaler' if precision == 'float16' else ''}, after SIGKILL"
        yield found_or_failed(what, lambda what=what, each=precision: _resumed(what, size, each, data, work / each))


def write_data(path: Path, size: TrainerSize) -> Path:
    """Random words, enough of them to fill each sample."""
    chance = random.Random(0)
    texts = [" ".join(chance.choices(_WORDS, k=size.length)) for _ in range(size.num_samples)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def settings_of(size: TrainerSize, data: Path, *, device: str, precision: str) -> list[str]:
    """The overrides of a run."""
    shape = [f"{who}.{name}" for who in ("teacher", "student") for name in ("d_model", "num_layers", "num_heads")]
    numbers = [size.width, size.num_layers, size.num_heads] * 2
    return [
        f"data.path={data}",
        f"data.max_length={size.length}",
        "data.on_too_long=truncate",
        "tokenizer.vocab_size=300",
        "teacher.steps=3",
        *(f"{name}={number}" for name, number in zip(shape, numbers, strict=True)),
        f"train.steps={size.steps}",
        f"train.batch_size={size.batch}",
        f"train.device={device}",
        f"train.precision={precision}",
        f"progress.checkpoint_interval={size.save_every}",
    ]


def _resumed(what: str, size: Size, precision: str, data: Path, work: Path) -> Row:
    whole, broken = work / "uninterrupted", work / "killed"
    settings = settings_of(size.exact, data, device=size.device, precision=precision)
    said = _train(settings, whole)
    killed = run_and_kill(
        _command(settings, broken),
        when=has_reached(broken, size.exact.kill_at),
        timeout_seconds=_START_SECONDS,
    )
    resumed = _train(settings, broken)
    problem = _problem(killed.return_code, killed.output, resumed, whole, broken, size.exact.steps)
    warned = nondeterministic(said + resumed)
    return Row(
        what=what,
        figure=problem or f"the same bits after {size.exact.steps} steps",
        verdict=Verdict.FAILS if problem else Verdict.HOLDS,
        why="; ".join([*_resume_line(resumed), *([f"PyTorch calls not deterministic: {warned}"] if warned else [])]),
    )


def _command(settings: list[str], folder: Path) -> list[str]:
    return [sys.executable, "-m", "training.distill_kd", *settings, "--output-dir", str(folder)]


def _train(settings: list[str], folder: Path) -> str:
    """What a run that ends well says."""
    ended = subprocess.run(_command(settings, folder), cwd=ROOT, capture_output=True, text=True, check=False)
    print(ended.stderr)
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        raise RuntimeError(f"distill_kd ended with exit code {ended.returncode}: {lines[-1] if lines else ''}")
    return ended.stderr


def has_reached(folder: Path, step: int) -> Callable[[], bool]:
    """Whether a run has a checkpoint to resume from, and its journal a step, or a later one."""
    metrics, manifest = folder / "progress" / "metrics.jsonl", folder / "progress" / "checkpoints.json"
    wanted = re.compile(rb'"step":(\d+),')

    def look() -> bool:
        if not (metrics.exists() and manifest.exists() and b'"checkpoint_step"' in manifest.read_bytes()):
            return False
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 4096))
            return any(int(each) >= step for each in wanted.findall(file.read()))

    return look


def _problem(code: int, output: str, resumed: str, whole: Path, broken: Path, steps: int) -> str:
    if code != -signal.SIGKILL:
        return f"the run ended with exit code {code} before it could be killed: {output.strip()[-200:]}"
    if not _resume_line(resumed):
        return "the second start did not resume"
    ends = [torch.load(folder / f"checkpoint_{steps}.pt", weights_only=True) for folder in (whole, broken)]
    if found := differences(*ends):
        return f"{len(found)} values differ at the end: {', '.join(found[:_MOST_NAMED])}"
    losses = [[line.loss for line in RunReader.open(folder).history()] for folder in (whole, broken)]
    if losses[0] != losses[1]:
        first = next(place for place, pair in enumerate(zip(*losses, strict=True), 1) if pair[0] != pair[1])
        return f"the losses differ from step {first} on"
    at = RunReader.open(broken).session().replay_differed_at
    return "" if at is None else f"step {at} was computed again with another loss"


def _resume_line(output: str) -> list[str]:
    return [line.split(",")[0].rstrip(".") for line in output.splitlines() if line.startswith("Resuming at step")]


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Every place where two training states are not the same bits."""
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{name}: the keys"]
        return [found for key in one for found in differences(one[key], other[key], f"{name}.{key}".strip("."))]
    if isinstance(one, (list, tuple)):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for place, pair in pairs for found in differences(*pair, f"{name}.{place}")]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [name]


def nondeterministic(output: str) -> str:
    """The operations of which PyTorch has warned that they are not deterministic."""
    return ", ".join(sorted({each.strip() for each in _NOT_DETERMINISTIC.findall(output)}))
