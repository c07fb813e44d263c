"""How long a save stops the training.

`python -m benchmarks.device.checks.save_stall WAY DEVICE FOLDER` measures one way in a process of its own, so that
the first save of each is a first one.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import async_save

from benchmarks.device.rows import Row, Verdict, found_or_failed
from benchmarks.device.running import said_by
from benchmarks.device.sizes import SIZES, Size
from benchmarks.figures import in_unit
from crashproof import training_progress_context
from crashproof.distillation.settings.progress import ProgressConfig
from crashproof.distillation.training.saving import CheckpointSaver
from crashproof.distillation.training.training_state import TrainingState
from crashproof.pytorch.device import choose_device
from crashproof.pytorch.ranks import SingleRank

__all__ = ["check"]

Save = Callable[[int], Callable[[], object]]
"""Stands still as long as training would have to; gives what waits for the rest of the save."""

_WIDTH, _NUM_LAYERS = 4, 20
_COPIES = 3
"""Weights and two moments."""


def check(size: Size, work: Path) -> Iterator[Row]:
    """The first save and the steady ones, in each way."""
    bare: list[float] = []
    for way in _WAYS:
        if way == "async_save_pinned" and size.device != "cuda":
            yield Row(what=_TITLES[way], figure="", verdict=Verdict.NOT_HERE, why="pinned memory needs a CUDA device")
            continue
        yield found_or_failed(_TITLES[way], lambda way=way: _compared(way, size, work / way, bare))


def _run(way: str, device: str, folder: Path) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.device.checks.save_stall", way, device, str(folder)]
    try:
        seconds: list[float] = json.loads(said_by(command).splitlines()[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return seconds


def _compared(way: str, size: Size, folder: Path, bare: list[float]) -> Row:
    """One way beside the bare one, which comes first and fills `bare`."""
    seconds = _run(way, size.device, folder)
    if not bare:
        bare += seconds
    first, steady = seconds[0], median(seconds[1:])
    is_ours = way == "ours"
    return Row(
        what=f"{_TITLES[way]}, {size.save.num_bytes / 1e9:.3g} GB",
        figure=f"first {in_unit(first)} ({first / bare[0]:.2f}x), then {in_unit(steady)} "
        f"({steady / median(bare[1:]):.2f}x)",
        verdict=Verdict.MEASURED,
        why="Goal: at most 1/3 of `torch.save`, the first one included" if is_ours else "",
        values={"first_seconds": first, "steady_seconds": steady},
    )


def _measured(way: str, device: str, folder: Path) -> list[float]:
    """Seconds that training stands still, save by save."""
    size = SIZES[device].save
    folder.mkdir(parents=True)
    state = _state(size.num_bytes, device)
    stalls = []
    with _WAYS[way](state, folder) as save:
        sleep(size.before_first_seconds)
        for number in range(1, size.num_saves + 1):
            state.counters.step = number
            _synchronize(device)
            begun = perf_counter()
            wait = save(number)
            stalls.append(perf_counter() - begun)
            wait()
    return stalls


def _state(num_bytes: int, device: str) -> TrainingState:
    """Weights and moments of so many bytes in all, in fp32 on the device."""
    torch.manual_seed(0)
    rows = num_bytes // (4 * _COPIES * _NUM_LAYERS * _WIDTH)
    layers = [nn.Linear(rows, _WIDTH, bias=False, device=device) for _ in range(_NUM_LAYERS)]
    module = nn.ModuleList(layers)
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    scaler = choose_device("cuda" if device == "cuda" else "cpu").grad_scaler()
    state = TrainingState(module=module, optimizer=optimizer, scaler=scaler, ranks=SingleRank(), seed=0)
    # The moments are made when they are asked for first: that is not to be in a save.
    state.tensors()
    return state


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def _bare(state: TrainingState, folder: Path) -> Iterator[Save]:
    yield lambda number: _saved_whole(state, folder / "state.pt")


def _saved_whole(state: TrainingState, path: Path) -> Callable[[], object]:
    torch.save(state.tensors(), path)
    return path.unlink


@contextmanager
def _async_save(state: TrainingState, folder: Path) -> Iterator[Save]:
    """As it comes: a stager for each save, and memory that is not pinned."""
    yield lambda number: _saved_behind(state, folder / f"{number}", stager=None)


@contextmanager
def _async_save_pinned(state: TrainingState, folder: Path) -> Iterator[Save]:
    """With a stager that is kept, pinned memory and a copy beside the computation."""
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=True, use_shared_memory=False, use_async_staging=True, use_non_blocking_copy=True
        )
    )
    try:
        yield lambda number: _saved_behind(state, folder / f"{number}", stager=stager)
    finally:
        stager.close()


def _saved_behind(state: TrainingState, path: Path, *, stager: DefaultStager | None) -> Callable[[], object]:
    saving: Any = async_save(
        state.tensors(), storage_writer=FileSystemWriter(path), async_stager=stager, no_dist=True
    )
    if hasattr(saving, "staging_completion"):
        # Until then the weights must not change.
        saving.staging_completion.result()
        saving = saving.upload_completion

    def wait() -> None:
        saving.result()
        shutil.rmtree(path)

    return wait


@contextmanager
def _ours(state: TrainingState, folder: Path) -> Iterator[Save]:
    with training_progress_context({}, folder, 100) as context:
        saver = CheckpointSaver(state, context, folder, SingleRank(), settings=ProgressConfig())
        saver.require_room()
        saver.prepare()

        def save(number: int) -> Callable[[], object]:
            saver.save()
            return saver.finish

        try:
            yield save
        finally:
            saver.close()


_WAYS: dict[str, Callable[[TrainingState, Path], Any]] = {
    "bare": _bare,
    "async_save": _async_save,
    "async_save_pinned": _async_save_pinned,
    "ours": _ours,
}
_TITLES = {
    "bare": "`torch.save`",
    "async_save": "`dcp.async_save`",
    "async_save_pinned": "`dcp.async_save`, pinned, its stager kept",
    "ours": "crashproof in the background",
}


if __name__ == "__main__":
    print(json.dumps(_measured(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
