"""What a proof takes beyond one run of the command."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.figures import Section, in_unit
from crashproof.proof.prover import prove_command
from crashproof.proof.scratch import Scratch

__all__ = ["measure"]

_PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {examples!r})
from plain_loop import train
train(Path(sys.argv[1]), steps=2000, seconds_per_step={seconds_per_step})
"""


def measure(work: Path, *, is_full: bool) -> Section:
    """Prove the example of a plain loop, a checkpoint every 200 of 2,000 steps, with three kills."""
    rows = [_row(work, seconds) for seconds in ([10, 60] if is_full else [10])]
    return Section(
        title="The time of a proof",
        columns=["one run", "the whole proof", "beyond the run", "of it recomputed or starting", "proof to run"],
        rows=rows,
        notes=[
            "`crashproof prove` on `examples/plain_loop.py`, a checkpoint every 200 of 2,000 steps: two uninterrupted"
            " runs, and one that is killed three times.",
            "Goal: for a run of a minute, less than 3 minutes beyond the run.",
        ],
    )


def _row(work: Path, seconds: int) -> list[str]:
    script = work / f"loop_{seconds}.py"
    examples = str(Path(__file__).parents[1] / "examples")
    script.write_text(_PROGRAM.format(examples=examples, seconds_per_step=seconds / 2000))
    scratch = Scratch(work / f"proof_{seconds}")
    certificate = prove_command(
        [sys.executable, str(script), "{output_dir}"], scratch, num_kills=3, say=lambda _: None
    )
    first, second, *killed = certificate.seconds.values()
    beyond = second + sum(killed)
    times = [first, first + beyond, beyond, max(0.0, sum(killed) - first)]
    return [*map(in_unit, times), f"{1 + beyond / first:.2f}x"]
