"""What a save in the background costs the training."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep

import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from benchmarks.figures import Section, in_unit, ratio
from crashproof import training_progress_context
from crashproof.distillation.settings.progress import ProgressConfig
from crashproof.distillation.training.saving import CheckpointSaver
from crashproof.distillation.training.training_state import TrainingState, size_of
from crashproof.pytorch.ranks import SingleRank
from crashproof.tracking.context import TrainingProgressContext

__all__ = ["measure"]

_WIDTH, _NUM_LAYERS = 1024, 8
_NUM_ROUNDS, _SAVES_A_ROUND = 5, 5
_PREPARING_SECONDS = 0.5
"""A run has trained for longer before its first save is due."""


@dataclass(slots=True)
class _Saves:
    """Of one way to save."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Of the whole process, from the call to the end of what it began."""
    all: list[float] = field(default_factory=list)
    """CPU and stall together: what the training does without."""


@dataclass(frozen=True, slots=True)
class _Way:
    save: Callable[[int], object]
    """What the loop calls."""
    finish: Callable[[], object] = lambda: None
    """Wait until it is done."""


def measure(work: Path, *, is_full: bool) -> Section:  # `is_full` changes nothing here.
    """The same state by each way, in turn; each round has a new model, in memory that is new to the process."""
    found: dict[str, _Saves] = {}
    num_bytes = 0
    for number in range(_NUM_ROUNDS):
        folder = work / f"{number}"
        folder.mkdir()
        state = _state()
        num_bytes = size_of(state.tensors())
        with training_progress_context({}, folder, 10_000) as context:
            for name, make in _WAYS.items():
                # Training has used this memory before the first save, and goes on using it.
                saves = _round(make(state, context, folder), folder, first_step=1 + 100 * len(found) + number)
                kept = found.setdefault(name, _Saves())
                kept.first += saves.first
                kept.later += saves.later
                kept.cpu += saves.cpu
                kept.all += saves.all
    bare = found["`torch.save`, bare"]
    return Section(
        title=f"A save in the background, of {num_bytes / 1e6:.0f} MB",
        columns=[
            "",
            "stall, first save",
            "ratio",
            "later saves",
            "ratio",
            "CPU a save",
            "ratio",
            "CPU + stall, ratio",
        ],
        rows=[
            [
                name,
                *(in_unit(median(saves.first)), ratio(saves.first, bare.later)),
                *(in_unit(median(saves.later)), ratio(saves.later, bare.later)),
                *(in_unit(median(saves.cpu)), ratio(saves.cpu, bare.cpu), ratio(saves.all, bare.all)),
            ]
            for name, saves in found.items()
        ],
        notes=[
            f"Medians over {_NUM_ROUNDS} rounds of {_SAVES_A_ROUND} saves, ratios to a later bare save. The stall is "
            "how long the call takes; CPU is that of the whole process until the checkpoint is recorded, which on a "
            "machine without idle cores is taken from the training. Goals: a third of the bare stall, the first save "
            "included, and 1.5 times its CPU and stall together. A stager alone writes nothing; `dcp.async_save` "
            "copies with it.",
        ],
    )


def _round(way: _Way, folder: Path, *, first_step: int) -> _Saves:
    saves = _Saves()
    for number in range(_SAVES_A_ROUND):
        cpu, begun = process_time(), perf_counter()
        way.save(first_step + number)
        stall = perf_counter() - begun
        way.finish()
        saves.cpu.append(process_time() - cpu)
        saves.all.append(saves.cpu[-1] + stall)
        (saves.later if number else saves.first).append(stall)
        for path in folder.glob("checkpoint_*"):
            path.unlink()
        os.sync()
    return saves


def _bare(state: TrainingState, context: TrainingProgressContext, folder: Path) -> _Way:
    def save(step: int) -> None:
        torch.save(state.tensors(), folder / f"checkpoint_{step}.pt")

    return _Way(save)


def _synced(state: TrainingState, context: TrainingProgressContext, folder: Path) -> _Way:
    def save(step: int) -> None:
        with (folder / f"checkpoint_{step}.pt").open("wb") as file:
            torch.save(state.tensors(), file)
            file.flush()
            os.fsync(file.fileno())

    return _Way(save)


def _ours(saves_behind: bool) -> Callable[[TrainingState, TrainingProgressContext, Path], _Way]:
    def make(state: TrainingState, context: TrainingProgressContext, folder: Path) -> _Way:
        settings = ProgressConfig(saves_behind=saves_behind)
        saver = CheckpointSaver(state, context, folder, SingleRank(), settings=settings)
        saver.prepare()
        sleep(_PREPARING_SECONDS)

        def save(step: int) -> None:
            state.counters.step = step
            saver.save()

        return _Way(save, saver.finish)

    return make


def _stager(state: TrainingState, context: TrainingProgressContext, folder: Path) -> _Way:
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
        )
    )
    return _Way(lambda step: stager.stage(dict(state.tensors())))


_WAYS: dict[str, Callable[[TrainingState, TrainingProgressContext, Path], _Way]] = {
    "`torch.save`, bare": _bare,
    "`torch.save` + `fsync`": _synced,
    "crashproof, in the background": _ours(saves_behind=True),
    "crashproof, waited for": _ours(saves_behind=False),
    "PyTorch's `DefaultStager` alone": _stager,
}


def _state() -> TrainingState:
    module = torch.nn.Sequential(*(torch.nn.Linear(_WIDTH, _WIDTH) for _ in range(_NUM_LAYERS)))
    state = TrainingState(
        module=module,
        optimizer=torch.optim.AdamW(module.parameters()),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        ranks=SingleRank(),
        seed=0,
    )
    for tensor in state.tensors().values():
        # Zeros that were never written to take no memory.
        tensor.detach().add_(1)
    return state
