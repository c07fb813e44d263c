"""Time until a process has started."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import sysconfig
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

from benchmarks.figures import Section, in_unit, ratio
from benchmarks.made_runs import new_tracker

__all__ = ["measure"]

_NUM_STARTS = 15
_NUM_LONG_STARTS = 3
_FLOOR = "import msgspec"
_IMPORTS = ("pass", _FLOOR, "import crashproof", "from crashproof import ProgressTracker")
_LONG_IMPORT = "import torch, transformers"
_TIMED = "import time; begun = time.process_time()\n{0}\nprint(time.process_time() - begun)"
_TRAINER = ("-m", "training.distill_kd", "--output-dir")


class _Start(NamedTuple):
    """One fresh process, from its start to its end."""

    import_seconds: float | None
    """CPU time of the import, as the process itself has measured it."""
    cpu_seconds: float
    wall_seconds: float


def measure(work: Path, *, is_full: bool) -> Section:
    """Start processes of each kind in turn."""
    new_tracker(work / "run").close()
    starts = _in_turn(_short_commands(work / "run"), work, _NUM_STARTS)
    starts |= _in_turn(_long_commands(work), work, _NUM_LONG_STARTS)
    floor = [each.import_seconds or 0.0 for each in starts[f"`{_FLOOR}`"]]
    return Section(
        title="Starting",
        columns=["process", "the import", f"times `{_FLOOR}`", "CPU of the process", "wall", "longest"],
        rows=[_row(name, found, floor) for name, found in starts.items()],
        notes=[
            f"Fresh processes from start to end, one kind after the other in turn; medians of {_NUM_STARTS}, of the "
            f"last two rows of {_NUM_LONG_STARTS}. *The import* is its CPU time, measured inside the process. All is "
            "compiled to bytecode before, as an installed package is. `import crashproof` brings neither what writes "
            "runs nor what reads them; the row below it has the whole tracker.",
            "Goals: at most 40 ms for the core, where it took 80; an error in a trainer's settings within 0.5 s, "
            "where it took as long as the imports of PyTorch, transformers and the trainer.",
        ],
    )


def _short_commands(run: Path) -> dict[str, list[str]]:
    crashproof = str(Path(sysconfig.get_path("scripts")) / "crashproof")
    return {f"`{each}`": ["-c", _TIMED.format(each)] for each in _IMPORTS} | {
        "`crashproof --help`": [crashproof, "--help"],
        "`crashproof status RUN`": [crashproof, "status", str(run)],
        "`distill_kd --help`": [*_TRAINER, "out", "--help"],
        "`distill_kd`, an unknown key": [*_TRAINER, "out", "train.stepz=3"],
        "`distill_kd`, data that are missing": [*_TRAINER, "out", "data.path=missing.jsonl"],
    }


def _long_commands(work: Path) -> dict[str, list[str]]:
    small = "{0}.d_model=16 {0}.num_layers=1 {0}.num_heads=2"
    words = [word for model in ("student", "teacher") for word in small.format(model).split()]
    words += ["teacher.steps=1", "train.device=cpu", "data.max_length=16", "data.on_too_long=truncate"]
    return {
        f"`{_LONG_IMPORT}`": ["-c", _TIMED.format(_LONG_IMPORT)],
        # Always from its beginning; the teacher and the tokens of the start before are kept.
        "`distill_kd`, one step": [*_TRAINER, str(work / "out"), "--resume", "never", "--steps", "1", *words],
    }


def _in_turn(commands: dict[str, list[str]], work: Path, num_starts: int) -> dict[str, list[_Start]]:
    # The first start of each compiles its modules, and does not count.
    rounds = [{name: _start(words, work) for name, words in commands.items()} for _ in range(num_starts + 1)]
    return {name: [each[name] for each in rounds[1:]] for name in commands}


def _start(words: list[str], work: Path) -> _Start:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(each) for each in sys.path if each)
    used, begun = _cpu_seconds(), perf_counter()
    ended = subprocess.run([sys.executable, *words], cwd=work, env=environment, capture_output=True, check=False)
    wall_seconds = perf_counter() - begun
    import_seconds = float(ended.stdout) if words[0] == "-c" else None
    return _Start(import_seconds, _cpu_seconds() - used, wall_seconds)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _row(name: str, starts: list[_Start], floor: list[float]) -> list[str]:
    imports = [each.import_seconds for each in starts if each.import_seconds is not None]
    own = [in_unit(median(imports)), ratio(imports, floor)] if imports else ["", ""]
    walls = [each.wall_seconds for each in starts]
    cpu = in_unit(median(each.cpu_seconds for each in starts))
    return [name, *own, cpu, in_unit(median(walls)), in_unit(max(walls))]
