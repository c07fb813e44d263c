"""Run `crashproof run` on a training that goes wrong, and see what becomes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("supervised_program.py")
SUPERVISOR = [sys.executable, "-c", "from crashproof.cli import main; main()", "run", "--json"]
QUICK = ("--patience", "1", "--grace", "1", "--backoff", "0.05")
_MARK = "CRASHPROOF_TEST_MARK"
_CGROUP = Path("/sys/fs/cgroup")


@dataclass
class Supervised:
    """A command line under way, and what can be seen of it afterwards."""

    folder: Path
    process: subprocess.Popen[str]
    mark: str
    output: str = ""
    said: str = ""
    outcome: dict[str, Any] = field(default_factory=dict)

    def wait(self, seconds: float = 120) -> Supervised:
        """Wait for its end."""
        self.output, self.said = self.process.communicate(timeout=seconds)
        lines = self.output.splitlines()
        self.outcome = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
        return self

    @property
    def code(self) -> int:
        return self.process.returncode

    @property
    def causes(self) -> list[str]:
        return [each["cause"] for each in self.outcome["ends"]]

    def left_processes(self) -> list[str]:
        """Command lines of what it has started and still lives."""
        return [line for pid, line in processes_with(self.mark) if pid != self.process.pid]

    def weights(self) -> bytes:
        """The last checkpoint."""
        return (self.folder / "checkpoint_12.json").read_bytes()

    def wait_until(self, is_so: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, "it did not come to that"
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)


def start(
    folder: Path,
    mode: str,
    *options: str,
    command: list[str] | None = None,
    mark: str | None = None,
    scratch: Path | None = None,
    **environment: str,
) -> Supervised:
    """Start a supervisor of the program in a mode."""
    folder.mkdir(exist_ok=True)
    mark = mark or uuid.uuid4().hex
    variables = {**os.environ, _MARK: mark, "TMPDIR": str(scratch or folder.parent), **environment}
    process = subprocess.Popen(
        [*SUPERVISOR, *QUICK, *options, "--", *(command or [sys.executable, str(PROGRAM), str(folder), mode])],
        env=variables,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return Supervised(folder, process, mark)


def supervise(folder: Path, mode: str, *options: str, **environment: Any) -> Supervised:
    """Run it to its end."""
    return start(folder, mode, *options, **environment).wait()


def processes_with(mark: str) -> Iterator[tuple[int, str]]:
    """Id and command line of each process that has inherited a mark."""
    for each in Path("/proc").iterdir():
        if not each.name.isdigit():
            continue
        try:
            if mark.encode() in (each / "environ").read_bytes():
                line = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                yield int(each.name), line
        except OSError:
            continue


@contextmanager
def small_memory_group() -> Iterator[Path | None]:
    """A control group with little memory, whose processes the kernel kills; None where none may be made."""
    own = _memory_group()
    group = None if own is None else own / f"crashproof-test-{uuid.uuid4().hex[:8]}"
    try:
        if group is not None:
            group.mkdir()
            limit = next(each for each in ("memory.limit_in_bytes", "memory.max") if (group / each).exists())
            (group / limit).write_text(str(200 << 20))
            if (group / "memory.swap.max").exists():
                (group / "memory.swap.max").write_text("0")
    except (OSError, StopIteration):
        group = None
    try:
        yield group
    finally:
        if group is not None:
            group.rmdir()


def _memory_group() -> Path | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        folder = _CGROUP / ("memory" if controllers == "memory" else "") / path.lstrip("/")
        if controllers in ("", "memory") and ((folder / "memory.stat").exists()):
            return folder
    return None


class NoMemoryGroup(Exception):
    """No control group may be made here."""


def plain(folder: Path, mode: str) -> Supervised:
    return supervise(folder, mode)


def out_of_memory(folder: Path, mode: str) -> Supervised:
    with small_memory_group() as group:
        if group is None:
            raise NoMemoryGroup
        return supervise(folder, mode, OOM_GROUP=str(group))


def stopped(folder: Path, mode: str) -> Supervised:
    """Stopped for longer than the limit, then continued."""
    run = start(folder, mode)
    lines: list[str] = []
    assert run.process.stderr is not None
    while not any("which is no hang" in line for line in lines):
        lines.append(run.process.stderr.readline())
        assert lines[-1], lines
    # Longer than the limit of 1 s.
    signal.sigtimedwait([], 2.5)
    os.kill(int((folder / "stopped").read_text()), signal.SIGCONT)
    return run.wait()


def supervisor_killed(folder: Path, mode: str) -> Supervised:
    """Its supervisor is killed while it trains; another one is started."""
    first = start(folder, mode, "--patience", "60")
    first.wait_until((folder / "slow").exists)
    first.process.kill()
    first.process.wait(30)
    for each in (first.process.stdout, first.process.stderr):
        assert each is not None
        each.close()
    second = start(folder, mode, "--patience", "60", mark=first.mark)
    assert second.process.stderr is not None
    while "is still there" not in (line := second.process.stderr.readline()):
        assert line
    (folder / "go_on").touch()
    return second.wait()


SCENARIOS: dict[str, tuple[str, Callable[[Path, str], Supervised], int, list[str]]] = {
    "finishes": ("finishes", plain, 0, ["completed"]),
    "ends-with-0-too-early": ("exits_early", plain, 4, ["ended_early"]),
    "same-error-each-time": ("always_raises", plain, 3, ["exception"] * 3),
    "out-of-memory": ("is_out_of_memory", out_of_memory, 0, ["out_of_memory", "completed"]),
    "hangs-in-python": ("hangs_in_python", plain, 0, ["hang", "completed"]),
    "hangs-in-c-with-the-lock": ("hangs_in_c", plain, 0, ["hang", "completed"]),
    "stopped-by-SIGSTOP": ("is_stopped", stopped, 0, ["completed"]),
    "slow-save": ("saves_slowly", plain, 0, ["completed"]),
    "slow-evaluation": ("evaluates_slowly", plain, 0, ["completed"]),
    "hangs-in-its-handler": ("hangs_in_handler", plain, 0, ["hang", "completed"]),
    "damaged-newest-checkpoint": ("damages_newest", plain, 0, ["signal", "completed"]),
    "supervisor-killed": ("waits", supervisor_killed, 0, ["completed"]),
}
"""The mode of the program, what is done to it, the supervisor's exit code, and the cause of each life's end."""
