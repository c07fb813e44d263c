"""Run every device check at once.

`python -m benchmarks.device` takes at most 8 minutes on one GPU; `--device cpu` runs the same code small. A check
that fails or hangs is a row that says why, and the exit code is 1; it is 2 where there is no such device.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.device.report import Report
from benchmarks.device.rows import Row, Verdict
from benchmarks.device.running import ROOT, CheckRunner, command_of, environment_of
from benchmarks.device.sizes import CHECKS, SIZES, Size

_RESULTS = ROOT / "benchmarks" / "RESULTS_GPU.md"
_NO_DEVICE = 2


def main() -> int:
    """Run what the command line asks for."""
    options = _options()
    # The groups of the checks are ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    facts = _facts(options.device)
    if options.device == "cuda" and facts["device"] == "none":
        sys.stderr.write("No CUDA device here. `DEVICE=cpu make gpu` runs the same checks small, on the CPU.\n")
        return _NO_DEVICE
    began_at = time.monotonic()
    rows = _run(options, began_at)
    report = Report(
        device=options.device,
        facts=facts,
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        seconds=time.monotonic() - began_at,
        rows=rows,
    )
    _write(report, options.out, is_complete=not options.names)
    return int(report.has_failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description="Run every device check.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CHECKS)}; all where none is given")
    parser.add_argument("--device", choices=tuple(SIZES), default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="folder of table, JSON and logs")
    parser.add_argument("--work", type=Path, help="a folder with 10 GB free on the disk to measure; the system's own")
    options = parser.parse_args()
    if unknown := set(options.names) - set(CHECKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    options.out = options.out.absolute()
    return options


def _facts(device: str) -> dict[str, str]:
    command = [sys.executable, "-m", "benchmarks.device.machine"]
    environment = environment_of(device)
    said = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    facts: dict[str, str] = json.loads(said.stdout)
    return facts


def _run(options: argparse.Namespace, began_at: float) -> dict[str, list[Row]]:
    names, size, logs = options.names or CHECKS, SIZES[options.device], options.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    runner = CheckRunner(size.device)
    with (
        tempfile.TemporaryDirectory(prefix="crashproof-device-", dir=options.work) as work,
        ThreadPoolExecutor(max_workers=size.num_at_once) as pool,
    ):
        found = [pool.submit(_run_one, name, size, Path(work), logs, began_at, runner) for name in names]
        try:
            return {name: each.result() for name, each in zip(names, found, strict=True)}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            runner.end_all()
            raise


def _run_one(name: str, size: Size, work: Path, logs: Path, began_at: float, runner: CheckRunner) -> list[Row]:
    left = size.limit_seconds - (time.monotonic() - began_at)
    if left <= 0:
        why = f"the {size.limit_seconds:.0f} s of all checks were over before it began"
        return [Row(what="the check itself", figure="", verdict=Verdict.FAILS, why=why)]
    folder = work / name
    folder.mkdir()
    result = work / f"{name}.jsonl"
    command = command_of(name, size.device, folder, result)
    rows = runner.run(command, result, logs / f"{name}.txt", limit_seconds=min(size.limits[name], left))
    # Whole training states: the next check may need the space.
    shutil.rmtree(folder, ignore_errors=True)
    for row in rows:
        print(f"{name}: {row.what}: {row.figure} {row.verdict}. {row.why}".rstrip(), file=sys.stderr, flush=True)
    return rows


def _write(report: Report, out: Path, *, is_complete: bool) -> None:
    (out / "results.json").write_text(report.json())
    (out / "results.md").write_text(report.markdown())
    print(report.markdown())
    print(f"Written: {out / 'results.json'}, {out / 'results.md'}; logs in {out / 'logs'}", file=sys.stderr)
    if report.device == "cuda" and is_complete:
        _RESULTS.write_text(report.markdown())
        print(f"Written: {_RESULTS}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
