"""Run all benchmarks.

`python -m benchmarks.run` takes about a quarter of an hour on two cores and rewrites `benchmarks/RESULTS.md`.
`--full` adds 10 million steps, a million answers and 200 kills; names (`update_cost memory …`) run only those, and
write nothing.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.figures import Section
from benchmarks.machine import machine_lines

BENCHMARKS = (
    "update_cost",
    "update_cpu",
    "update_losses",
    "line_size",
    "start_time",
    "opening_time",
    "memory",
    "page_speed",
    "looks",
    "supervised_runs",
    "checkpoint_stall",
    "background_save",
    "answer_cost",
    "answer_store",
    "answer_opening",
    "answers_per_second",
    "job_of_many_prompts",
    "training_overhead",
    "trainer_steps",
    "proof_overhead",
    "loss_memory",
    "sharded_memory",
    "distillation_gain",
)
RESULTS = Path(__file__).with_name("RESULTS.md")

_INTRODUCTION = """\
# What crashproof costs

Written by `python -m benchmarks.run`. Each benchmark runs in a process of its own, all of them one after the
other. Times are medians and tails; a ratio compares what was measured in turn within one run."""


def main() -> None:
    """Run what the command line asks for."""
    arguments = _arguments()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crashproof-bench-", dir=arguments.work) as work:
        head = "\n".join([_INTRODUCTION, "", *machine_lines(Path(work))])
        sections = [_measured(name, work, is_full=arguments.full) for name in arguments.names or BENCHMARKS]
    seconds = time.monotonic() - begun
    print(f"{len(sections)} benchmarks in {seconds:.0f} s", file=sys.stderr)
    if arguments.names:
        return
    head += f"\n- All of it took {seconds:.0f} s{' with --full' if arguments.full else ''}"
    RESULTS.write_text("\n\n".join([head, *(section.markdown() for section in sections)]) + "\n")
    print(f"Written: {RESULTS}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Measure what crashproof costs.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; all where none is given")
    parser.add_argument(
        "--full",
        action="store_true",
        help="also 10 million steps, a million answers and 200 kills, 5 GB; takes several minutes more",
    )
    parser.add_argument("--work", type=Path, help="a folder on the disk to measure; the system's own if not given")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    return arguments


def _measured(name: str, work: str, *, is_full: bool) -> Section:
    """One benchmark, in a process of its own so that none finds another's memory, threads or files."""
    with (
        tempfile.TemporaryDirectory(dir=work) as folder,
        ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool,
    ):
        section = pool.submit(_measure_here, name, Path(folder), is_full).result()
    print(section.markdown(), end="\n\n", flush=True)
    return section


def _measure_here(name: str, folder: Path, is_full: bool) -> Section:
    # Runs whose journal was made ahead of their snapshots say so; here that is meant.
    logging.getLogger("crashproof").setLevel(logging.ERROR)
    section: Section = importlib.import_module(f"benchmarks.{name}").measure(folder, is_full=is_full)
    return section


if __name__ == "__main__":
    main()
