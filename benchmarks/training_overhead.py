"""What tracking costs a training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch
from torch import nn

from benchmarks.figures import Section, in_unit, tail_cells
from benchmarks.made_runs import new_tracker

__all__ = ["measure"]

_WIDTH = 192
_BATCH_SIZE = 4
_SEQUENCE_LENGTH = 64
_NUM_LAYERS = 2
_STEPS_A_BLOCK = 60
_NUM_PAIRS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Steps that were timed together."""

    seconds: list[float]
    """Of each step, by the clock on the wall."""
    cpu_seconds: float
    """Of all steps and all threads of this process."""


def measure(work: Path, *, is_full: bool) -> Section:  # `is_full` changes nothing here.
    """A small transformer's steps, in blocks with and without tracking that alternate."""
    train_step = _training_loop()
    _plain_block(train_step)
    plain: list[_Block] = []
    tracked: list[_Block] = []
    for pair in range(_NUM_PAIRS):
        first_step = pair * _STEPS_A_BLOCK + 1
        # Each comes first as often as the other.
        if pair % 2:
            plain.append(_plain_block(train_step))
        tracked.append(_tracked_block(train_step, work / "run", first_step))
        if not pair % 2:
            plain.append(_plain_block(train_step))
    wall = _overheads([sum(each.seconds) for each in tracked], [sum(each.seconds) for each in plain])
    cpu = _overheads([each.cpu_seconds for each in tracked], [each.cpu_seconds for each in plain])
    return Section(
        title="A training loop with tracking and without",
        columns=["", "step p50", "step p99", "steps/s", "CPU a step", "overhead, wall", "overhead, CPU"],
        rows=[
            [*_cells("tracking on", tracked), f"{median(wall):+.2f} %", f"{median(cpu):+.2f} %"],
            [*_cells("tracking off", plain), "0 %", "0 %"],
        ],
        notes=[
            f"A transformer of {_NUM_LAYERS} layers on one CPU thread, so that the heartbeat has a core to itself. "
            f"{_NUM_PAIRS} pairs of blocks of {_STEPS_A_BLOCK} steps; a tracker is open only in those with tracking, "
            "and its opening and closing are not in them. Overheads are medians over the pairs of whole blocks, the "
            f"heartbeat included; single pairs: {_spread(wall)} by the wall, {_spread(cpu)} in CPU time, which says "
            "how far they can be trusted on a shared machine.",
        ],
    )


def _cells(name: str, blocks: list[_Block]) -> list[str]:
    steps = [seconds for block in blocks for seconds in block.seconds]
    steps_a_second = median(len(block.seconds) / sum(block.seconds) for block in blocks)
    cpu = median(block.cpu_seconds / len(block.seconds) for block in blocks)
    return [name, *tail_cells(steps, 50, 99), f"{steps_a_second:.1f}", in_unit(cpu)]


def _overheads(tracked: list[float], plain: list[float]) -> list[float]:
    return [(one / other - 1) * 100 for one, other in zip(tracked, plain, strict=True)]


def _spread(overheads: list[float]) -> str:
    return f"{min(overheads):+.1f} % to {max(overheads):+.1f} %"


def _tracked_block(train_step: Callable[[], torch.Tensor], folder: Path, first_step: int) -> _Block:
    tracker = new_tracker(folder)

    def step_and_report(step: int) -> None:
        loss = train_step()
        tracker.update_metrics(step, loss, {"mse": loss}, 1e-3, step * _BATCH_SIZE, step * _BATCH_SIZE)

    block = _timed(step_and_report, first_step)
    tracker.close()
    return block


def _plain_block(train_step: Callable[[], torch.Tensor]) -> _Block:
    return _timed(lambda step: train_step(), 1)


def _timed(run_step: Callable[[int], object], first_step: int) -> _Block:
    seconds = []
    cpu_begun = process_time()
    for step in range(first_step, first_step + _STEPS_A_BLOCK):
        begun = perf_counter()
        run_step(step)
        seconds.append(perf_counter() - begun)
    return _Block(seconds=seconds, cpu_seconds=process_time() - cpu_begun)


def _training_loop() -> Callable[[], torch.Tensor]:
    torch.set_num_threads(1)
    torch.manual_seed(7)
    layer = nn.TransformerEncoderLayer(_WIDTH, nhead=4, dim_feedforward=4 * _WIDTH, batch_first=True)
    model = nn.TransformerEncoder(layer, num_layers=_NUM_LAYERS, enable_nested_tensor=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = torch.randn(_BATCH_SIZE, _SEQUENCE_LENGTH, _WIDTH)

    def train_step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = (model(batch) - batch).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return train_step
