"""Run a check in a process that ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.device.rows import Row, Verdict

__all__ = ["ROOT", "CheckRunner", "command_of", "environment_of", "said_by"]

ROOT = Path(__file__).parents[2]
_LONGEST_REASON = 300


def environment_of(device: str) -> dict[str, str]:
    """What the processes of the checks find in their environment."""
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    # Checks on a CPU run side by side, and their models are too small to share out.
    threads = {"OMP_NUM_THREADS": "1"} if device == "cpu" else {}
    return {
        **os.environ,
        **threads,
        # So that it runs from a checkout that is not installed, too.
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def command_of(check: str, device: str, work: Path, result: Path) -> list[str]:
    """The command line of a check's process; it appends its rows to `result`."""
    return [sys.executable, "-m", "benchmarks.device.process", check, device, str(work), str(result)]


class CheckRunner:
    """Starts checks, and knows which are running."""

    def __init__(self, device: str) -> None:
        self._environment = environment_of(device)
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, command: Sequence[str], result: Path, log: Path, *, limit_seconds: float) -> list[Row]:
        """The rows of a check. One that does not end, or ends badly, keeps those it has found and gets one more.

        The process leads a group of its own: at the limit, that group is killed with all that the check has started.
        """
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=self._environment, process_group=0
            )
            self._running.add(process)
            try:
                return_code = process.wait(timeout=limit_seconds)
            except subprocess.TimeoutExpired:
                failure = f"not done within {limit_seconds:.0f} s, and ended; {_last_line(log)}"
            else:
                failure = "" if return_code == 0 else f"exit code {return_code}: {_last_line(log)}"
            finally:
                _end_group(process)
                self._running.discard(process)
        rows = _read_rows(result)
        if not failure and not rows:
            failure = "it ended without a result"
        if failure:
            rows.append(Row(what="the check itself", figure="", verdict=Verdict.FAILS, why=failure))
        return rows

    def end_all(self) -> None:
        """End what is running: this program was interrupted."""
        for process in list(self._running):
            _end_group(process)


def said_by(command: Sequence[str]) -> str:
    """What a process prints that a check has started, which needs not have ended well for the check to go on.

    Raises:
        RuntimeError: It did not end well; with the last line that it printed.
    """
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    # Into the check's log.
    print(ended.stderr)
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        raise RuntimeError(f"exit code {ended.returncode}: {lines[-1][:_LONGEST_REASON] if lines else ''}")
    return ended.stdout


def _end_group(process: subprocess.Popen[bytes]) -> None:
    # The group outlives its leader as long as something that the check has started does.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read_rows(result: Path) -> list[Row]:
    if not result.exists():
        return []
    # A line that was being written when its process was killed has no end.
    return [Row.from_json(json.loads(line)) for line in result.read_text().split("\n")[:-1]]


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:_LONGEST_REASON] if lines else "it printed nothing"
