"""What tracking costs the trainer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from benchmarks.figures import Section, in_unit, tail_cells
from benchmarks.trained_loop import StepTimes, trained_loop
from crashproof import training_progress_context
from crashproof.distillation.recipes.kd import KD
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.training.lessons import read_lessons
from crashproof.distillation.training.preparation import Prepared, prepare
from crashproof.pytorch.interrupts import Interrupts

__all__ = ["measure"]

_STEPS_A_BLOCK = 40
_NUM_PAIRS = 8
_OVERRIDES = ("teacher.steps=5", "train.device=cpu", "progress.checkpoint_interval=1000000")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Steps that were timed together."""

    seconds: list[float]
    """Of each step, by the clock on the wall."""
    cpu_seconds: float
    """Of all steps and all threads of this process."""


def measure(work: Path, *, is_full: bool) -> Section:  # `is_full` changes nothing here.
    """The quickstart's steps, in blocks with and without tracking that alternate."""
    # One thread, so that the heartbeat has a core to itself.
    torch.set_num_threads(1)
    config = load_config(KdConfig, [Path("configs/quickstart.yaml")], _OVERRIDES)
    lessons = read_lessons(KD, config)
    prepared = prepare(KD, config, lessons, cache=work / "cache", interrupts=Interrupts())
    blocks: dict[bool, list[_Block]] = {True: [], False: []}
    for pair in range(_NUM_PAIRS):
        # Each comes first as often as the other.
        for is_tracked in (pair % 2 == 0, pair % 2 == 1):
            blocks[is_tracked].append(_block(prepared, config, work / f"run-{pair}-{is_tracked}", is_tracked))
    tracked, plain = blocks[True], blocks[False]
    wall = _overheads([sum(each.seconds) for each in tracked], [sum(each.seconds) for each in plain])
    cpu = _overheads([each.cpu_seconds for each in tracked], [each.cpu_seconds for each in plain])
    return Section(
        title="The trainer with tracking and without",
        columns=["", "step p50", "step p99", "steps/s", "CPU a step", "overhead, wall", "overhead, CPU"],
        rows=[
            [*_cells("tracking on", tracked), f"{median(wall):+.2f} %", f"{median(cpu):+.2f} %"],
            [*_cells("tracking off", plain), "0 %", "0 %"],
        ],
        notes=[
            "`distill_kd` with the quickstart's models and losses on one CPU thread, "
            f"{_NUM_PAIRS} pairs of blocks of {_STEPS_A_BLOCK} steps without checkpoints. Overheads are medians over "
            f"the pairs, the heartbeat included; single pairs: {_spread(wall)} by the wall, {_spread(cpu)} in CPU "
            "time, which says how far they can be trusted on a shared machine. Goal: under 1 %.",
        ],
    )


def _block(prepared: Prepared, config: RunConfig, folder: Path, is_tracked: bool) -> _Block:
    """Some steps of the trainer; without tracking, the context is that of a process that is not the main one."""
    folder.mkdir(parents=True)
    train = config.train.model_copy(update={"steps": _STEPS_A_BLOCK})
    times = StepTimes()
    with (
        training_progress_context({}, folder, _STEPS_A_BLOCK, is_main_process=is_tracked) as context,
        trained_loop(prepared.recipe, prepared.data, train, config.progress, context, folder) as loop,
    ):
        loop.run(times)
    # All steps but the first, which is a block's warm-up.
    return _Block(
        seconds=[later - earlier for earlier, later in pairwise(times.moments[1:])],
        cpu_seconds=times.cpu_moments[-1] - times.cpu_moments[1],
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
