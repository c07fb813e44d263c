"""DDP and FSDP2 on one rank.

`python -m benchmarks.device.checks.one_rank STRATEGY DEVICE DATA FOLDER` is one life of a run, which a kill may end.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.distributed_c10d import PrefixStore

from benchmarks.device.checks.exact_resume import differences, has_reached, settings_of, write_data
from benchmarks.device.rows import Row, Verdict, found_or_failed
from benchmarks.device.running import ROOT
from benchmarks.device.sizes import SIZES, Size
from crashproof.distillation.models.making import WHOLE_MODELS, DeferredModels
from crashproof.distillation.recipes.kd import KD, KdConfig
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.training.agreement.inputs import InputDigests
from crashproof.distillation.training.lessons import read_lessons
from crashproof.distillation.training.preparation import prepare
from crashproof.distillation.training.strategy import is_sharded
from crashproof.distillation.training.training_run import TrainingRun
from crashproof.pytorch.device import choose_device, compute_deterministically
from crashproof.pytorch.interrupts import Interrupts
from crashproof.pytorch.ranks import DistributedRanks, Ranks, SingleRank
from crashproof.pytorch.ranks.activities import Activities
from crashproof.pytorch.ranks.bounded_store import BoundedStore
from crashproof.pytorch.ranks.peers import Peers
from crashproof.testing import run_and_kill

__all__ = ["check"]

_ALONE = "alone"
_STRATEGIES = {"ddp": "DDP", "fsdp": "FSDP2"}
_LIMIT_SECONDS = 60.0
_START_SECONDS = 90.0
_MOST_NAMED = 3


def check(size: Size, work: Path) -> Iterator[Row]:
    """Each strategy: killed and resumed against uninterrupted, and against a process without a group."""
    data = write_data(work / "data.jsonl", size.ranks)
    _train(_ALONE, size, data, work / _ALONE)
    for strategy, title in _STRATEGIES.items():
        what = f"{title} on one rank, after SIGKILL"
        yield found_or_failed(what, lambda what=what, strategy=strategy: _resumed(what, strategy, size, data, work))
        beside = f"{title} on one rank, beside a process alone"
        yield found_or_failed(beside, lambda beside=beside, strategy=strategy: _beside(beside, strategy, size, work))


def _resumed(what: str, strategy: str, size: Size, data: Path, work: Path) -> Row:
    _train(strategy, size, data, work / strategy)
    broken = work / f"{strategy}-killed"
    command = [sys.executable, "-m", "benchmarks.device.checks.one_rank", strategy, size.device, str(data)]
    command.append(str(broken))
    killed = run_and_kill(command, when=has_reached(broken, size.ranks.kill_at), timeout_seconds=_START_SECONDS)
    resumed = subprocess.run(command, cwd=ROOT, check=False, stderr=subprocess.PIPE, text=True)
    found = [] if resumed.returncode else _ends(size, work, strategy, broken.name)
    return _judged(what, size, killed.return_code, resumed, found)


def _beside(what: str, strategy: str, size: Size, work: Path) -> Row:
    found = _ends(size, work, _ALONE, strategy)
    return Row(
        what=what,
        figure=f"{len(found)} weights differ" if found else "the same bits",
        verdict=Verdict.MEASURED,
        values={"differing_weights": len(found)},
    )


def _ends(size: Size, work: Path, one: str, other: str) -> list[str]:
    """The weights that differ at the ends of two runs."""
    students = [work / name / f"student_{size.ranks.steps}" / "model.safetensors" for name in (one, other)]
    return differences(*map(load_file, students))


def _judged(what: str, size: Size, code: int, resumed: subprocess.CompletedProcess[str], found: list[str]) -> Row:
    print(resumed.stderr)
    lines = [line for line in resumed.stderr.splitlines() if line.strip()]
    resuming = next((line.split(",")[0] for line in lines if line.startswith("Resuming at step")), "")
    problem = ""
    if code != -signal.SIGKILL:
        problem = f"the run ended with exit code {code} before it could be killed"
    elif resumed.returncode:
        problem = f"the second start ended with exit code {resumed.returncode}: {lines[-1] if lines else ''}"
    elif not resuming:
        problem = "the second start did not resume"
    elif found:
        problem = f"{len(found)} weights differ at the end: {', '.join(found[:_MOST_NAMED])}"
    return Row(
        what=what,
        figure=problem or f"the same bits after {size.ranks.steps} steps",
        verdict=Verdict.FAILS if problem else Verdict.HOLDS,
        why=resuming,
    )


def _train(strategy: str, size: Size, data: Path, folder: Path) -> None:
    """One life of a run: the trainer's own parts, in a group of one."""
    settings = settings_of(size.ranks, data, device=size.device, precision="auto")
    config = load_config(KdConfig, [], [*settings, *([] if strategy == _ALONE else [f"train.strategy={strategy}"])])
    compute_deterministically()
    with _ranks(strategy, size.device) as ranks:
        prepared = prepare(
            KD,
            config,
            read_lessons(KD, config),
            cache=folder / "cache",
            interrupts=Interrupts(),
            models=DeferredModels() if is_sharded(strategy, ranks) else WHOLE_MODELS,
        )
        run = TrainingRun(
            KD,
            config,
            prepared,
            InputDigests.read(config),
            folder,
            device=choose_device(config.train.device, config.train.precision),
            ranks=ranks,
            interrupts=Interrupts(),
            resume="auto",
        )
        run.train()
        run.save_student()


@contextmanager
def _ranks(strategy: str, device: str) -> Iterator[Ranks]:
    """A process group of this process alone; `torchrun` with one process would make none."""
    if strategy == _ALONE:
        yield SingleRank()
        return
    limit = timedelta(seconds=_LIMIT_SECONDS)
    if device == "cuda":
        torch.cuda.set_device(0)
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False, timeout=limit)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=limit)
    try:
        kept = BoundedStore(PrefixStore("crashproof", store), name="the only rank")
        ranks = DistributedRanks(Peers(kept, Activities(), rank=0, num_ranks=1, limit_seconds=_LIMIT_SECONDS))
        yield ranks
        ranks.leave()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    _train(sys.argv[1], SIZES[sys.argv[2]], Path(sys.argv[3]), Path(sys.argv[4]))
