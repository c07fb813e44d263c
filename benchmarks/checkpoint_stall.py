"""How long a checkpoint stops training."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep

import torch

from benchmarks.figures import Section, in_unit, ratio
from benchmarks.made_runs import new_tracker
from crashproof import ProgressTracker, write_atomically

__all__ = ["measure"]

_NUM_BYTES = 100_000_000
_NUM_TENSORS = 20
_NUM_ROUNDS = 7
_POLL_SECONDS = 0.05
_BARE, _SYNCED = "`torch.save`, bare", "`torch.save` + `fsync`"


def measure(work: Path, *, is_full: bool) -> Section:  # `is_full` changes nothing here.
    """The ways to save 100 MB, in turn, each without another's writes or digests beside it."""
    tracker = new_tracker(work)
    ways = _ways(tracker, _tensors())
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in ways}
    for each_round in range(_NUM_ROUNDS + 1):
        for number, (name, save) in enumerate(ways.items()):
            step = each_round * len(ways) + number
            path = work / f"checkpoint_{step}.pt"
            cpu_begun = process_time()
            spent = _timed(save, step, path)
            _wait_for_digests(tracker)
            cpu_spent = process_time() - cpu_begun
            path.unlink()
            os.sync()
            # The first round warms up.
            if each_round:
                seconds[name].append(spent)
                cpu_seconds[name].append(cpu_spent)
    tracker.close()
    bare, synced, bare_cpu = seconds[_BARE], seconds[_SYNCED], cpu_seconds[_BARE]
    return Section(
        title="A checkpoint of 100 MB",
        columns=["", "median stall", "longest", "against bare", "against synced", "CPU", "against bare"],
        rows=[
            [
                name,
                *(in_unit(median(each)), in_unit(max(each)), ratio(each, bare), ratio(each, synced)),
                *(in_unit(median(cpu_seconds[name])), ratio(cpu_seconds[name], bare_cpu)),
            ]
            for name, each in seconds.items()
        ],
        notes=[
            f"{_NUM_ROUNDS} rounds, the ways in turn, each to a new name. The bare `torch.save` is in the page cache "
            "and survives no power loss. An adopted file is read back and digested in the background, which is "
            "in its CPU and not in its stall; `write_atomically` digests what it writes. CPU is that of the "
            "whole process. Goal: 1.3 times a synced `torch.save`.",
        ],
    )


def _ways(tracker: ProgressTracker, tensors: dict[str, torch.Tensor]) -> dict[str, Callable[[int, Path], object]]:
    def save_bare(step: int, path: Path) -> None:
        torch.save(tensors, path)

    def save_synced(step: int, path: Path) -> None:
        with path.open("wb") as file:
            torch.save(tensors, file)
            file.flush()
            os.fsync(file.fileno())

    def save_and_adopt(step: int, path: Path) -> None:
        torch.save(tensors, path)
        tracker.record_checkpoint(step, path, dataset_position=step)

    def save_whole(step: int, path: Path) -> None:
        written = write_atomically(path, lambda file: torch.save(tensors, file))
        tracker.record_checkpoint(step, path, dataset_position=step, written=written)

    return {
        _BARE: save_bare,
        _SYNCED: save_synced,
        "`torch.save` + `record_checkpoint` (adopted)": save_and_adopt,
        "`write_atomically` + `record_checkpoint`": save_whole,
    }


def _timed(save: Callable[[int, Path], object], step: int, path: Path) -> float:
    begun = perf_counter()
    save(step, path)
    return perf_counter() - begun


def _wait_for_digests(tracker: ProgressTracker) -> None:
    while not all(each.is_verifiable for each in tracker.session.checkpoints.values()):
        sleep(_POLL_SECONDS)


def _tensors() -> dict[str, torch.Tensor]:
    num_floats = _NUM_BYTES // _NUM_TENSORS // 4
    generator = torch.Generator().manual_seed(7)
    return {f"layer.{number}": torch.randn(num_floats, generator=generator) for number in range(_NUM_TENSORS)}
