"""Verdicts of a supervisor."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from benchmarks.figures import Section

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from supervising import SCENARIOS, NoMemoryGroup, Supervised

from crashproof import RunReader

__all__ = ["measure"]

_TRIALS, _MANY_TRIALS = 3, 20
_AT_ONCE = 2
_WELL = 0


def measure(work: Path, *, is_full: bool) -> Section:
    """Let each scenario happen some times, with real processes."""
    trials = _MANY_TRIALS if is_full else _TRIALS
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        jobs = [(name, work / f"{name}-{trial}") for name in SCENARIOS for trial in range(trials)]
        found = list(pool.map(lambda job: _trial(*job), jobs))
    weights = {run.weights() for name, run in found if run is not None and SCENARIOS[name][2] == _WELL}
    rows = [_row(name, [run for each, run in found if each == name]) for name in SCENARIOS]
    return Section(
        title="Verdicts of a supervisor",
        columns=["what happens", "times", "wrong verdicts", "processes left", "longest until told of the hang"],
        rows=rows,
        notes=[
            "`crashproof run --patience 1 --grace 1` on a training of 12 steps, with real processes. A verdict is "
            "the exit code and the cause of each life's end. Until told: from the last journalled step to the stacks "
            "in the run's folder.",
            f"Where it ends well, the last checkpoints are of {len(weights)} kind(s), byte for byte.",
        ],
    )


def _trial(name: str, folder: Path) -> tuple[str, Supervised | None]:
    mode, run_it, _, _ = SCENARIOS[name]
    try:
        return name, run_it(folder, mode)
    except NoMemoryGroup:
        return name, None


def _row(name: str, runs: list[Supervised | None]) -> list[str]:
    _, _, code, causes = SCENARIOS[name]
    done = [each for each in runs if each is not None]
    wrong = [each for each in done if (each.code, each.causes) != (code, causes)]
    for each in wrong:
        print(name, each.code, each.causes, each.said, file=sys.stderr)
    left = sum(len(each.left_processes()) for each in done)
    late = [_seconds_until_told(each) for each in done if "hang" in causes]
    told = f"{max(late):.1f} s (median {median(late):.1f} s)" if late else ""
    return [name.replace("-", " "), str(len(done)), str(len(wrong)), str(left), told]


def _seconds_until_told(run: Supervised) -> float:
    """From the newest step of the attempt that hung to the moment its stacks were kept."""
    last = max(each.timestamp for each in RunReader.open(run.folder).all_updates() if each.attempt == 1)
    stacks = run.folder / "progress" / "stacks" / "attempt_1.txt"
    return stacks.stat().st_mtime - last
