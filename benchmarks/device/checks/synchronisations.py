"""Synchronisations with the device, counted."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.device.models import random_tokens, recipe_on
from benchmarks.device.rows import Row, Verdict, found_or_failed
from benchmarks.device.sizes import Size
from benchmarks.made_runs import new_tracker
from benchmarks.trained_loop import trained_loop
from crashproof import RunReader, training_progress_context
from crashproof.distillation.settings.progress import ProgressConfig
from crashproof.distillation.settings.train import TrainConfig
from crashproof.pytorch.device import compute_deterministically

__all__ = ["check"]

_TEXT = "called a synchronizing CUDA operation"
_WARM_UP_STEPS = 3
_MOST_NAMED = 3


def check(size: Size, work: Path) -> Iterator[Row]:
    """Of `update_metrics` with tensors of the device, and of the trainer's own step."""
    # As the trainers do: other operations might synchronise.
    compute_deterministically()
    is_cuda = size.device == "cuda"
    if is_cuda:
        yield found_or_failed("one `.item()` is noticed", _counter_works)
    parts = {"`update_metrics` with device tensors": lambda found: _update(size, work / "updates", found)}
    for each in size.precisions:
        parts[f"a trainer's step, {each}"] = lambda found, each=each: _train(size, each, work / each, found)
    for what, run in parts.items():
        yield found_or_failed(what, lambda what=what, run=run: _row(what, size, run))


def _counter_works() -> Row:
    """That the debug mode counts at all: without this, its zero would mean nothing."""
    found: list[str] = []
    number = torch.zeros((), device="cuda")
    with _recorded(found), _watched(is_cuda=True):
        number.item()
    verdict = Verdict.HOLDS if found else Verdict.FAILS
    return Row(what="one `.item()` is noticed", figure=f"{len(found)}", verdict=verdict, values={"num": len(found)})


def _row(what: str, size: Size, run: Callable[[list[str]], int]) -> Row:
    found: list[str] = []
    num_steps = run(found)
    if size.device != "cuda":
        why = f"{num_steps} steps ran; a CPU has nothing to wait for, so nothing was counted"
        return Row(what=what, figure="", verdict=Verdict.NOT_HERE, why=why)
    return Row(
        what=what,
        figure=f"{len(found)} in {num_steps} steps",
        verdict=Verdict.FAILS if found else Verdict.HOLDS,
        why="; ".join(sorted(set(found))[:_MOST_NAMED]),
        values={"synchronisations": len(found), "steps": num_steps},
    )


def _update(size: Size, folder: Path, found: list[str]) -> int:
    """Report numbers that the device still computes; all of them are in the journal afterwards."""
    matrix = torch.rand(size.model.width, size.model.width, device=size.device)
    tracker = new_tracker(folder)
    tracker.update_metrics(1, matrix.mean(), {"ce": matrix.mean()}, 1e-3, 1, 1)
    with _recorded(found), _watched(is_cuda=size.device == "cuda"):
        for step in range(2, size.watched_steps + 2):
            matrix = matrix @ matrix / matrix.norm()
            loss = matrix.mean()
            tracker.update_metrics(step, loss, {"ce": loss * 0.4, "kd": loss * 0.6}, 1e-3, step, step)
    tracker.close()
    kept = [line.step for line in RunReader.open(folder).history()]
    if kept != list(range(1, size.watched_steps + 2)):
        raise RuntimeError(f"of {size.watched_steps + 1} updates the journal has {len(kept)}")
    return size.watched_steps


def _train(size: Size, precision: Any, folder: Path, found: list[str]) -> int:
    """Run the trainer's loop; its save at the end is not counted."""
    folder.mkdir()
    steps = _WARM_UP_STEPS + size.watched_steps
    train = TrainConfig(steps=steps, batch_size=size.model.batch, device=size.device, precision=precision)
    recipe = recipe_on(torch.device(size.device), size.model)
    progress = ProgressConfig(checkpoint_interval=steps + 1)
    with (
        training_progress_context({}, folder, steps) as context,
        trained_loop(recipe, random_tokens(size.model), train, progress, context, folder) as loop,
        _recorded(found),
    ):
        loop.run(_Watch(first=_WARM_UP_STEPS, last=steps, is_cuda=size.device == "cuda"))
    return size.watched_steps


class _Watch:
    """Stands where the progress bar stands, and has the steps between two of them watched."""

    def __init__(self, *, first: int, last: int, is_cuda: bool) -> None:
        self._modes = {first: "warn", last: "default"} if is_cuda else {}

    def advance(self, step: int, **shown: Any) -> None:
        """A step is done."""
        if step in self._modes:
            torch.cuda.set_sync_debug_mode(self._modes[step])


@contextmanager
def _watched(*, is_cuda: bool) -> Iterator[None]:
    if not is_cuda:
        yield
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def _recorded(found: list[str]) -> Iterator[None]:
    """Collect where PyTorch says that this thread waited; what a thread beside it waits for stops no step."""
    own = threading.get_ident()

    def collect(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        if _TEXT in str(message) and threading.get_ident() == own:
            found.append(f"{filename}:{lineno}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = collect
        yield
