"""`crashproof watch` in a real terminal of 80 columns, while its run is killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TMUX = shutil.which("tmux")
pytestmark = pytest.mark.skipif(TMUX is None, reason="tmux is not installed")

LOOP = """
import math, sys, time
from pathlib import Path
from crashproof import get_recovery_checkpoint, training_progress_context, write_atomically
out = Path(sys.argv[1])
newest = get_recovery_checkpoint(out)
first = newest[1] + 1 if newest else 1
with training_progress_context({"lr": 1}, out, 20000) as progress:
    for step in range(first, 20001):
        loss = 40.0 if step == 60 else 4.0 * math.exp(-step / 200) + 0.5
        progress.update_metrics(step, loss, {"kd": loss / 2, "ce": loss / 2}, 1e-3, step * 8, step * 1024)
        if step % 50 == 0:
            path = out / f"checkpoint_{step}.txt"
            written = write_atomically(path, lambda file: file.write(b"w"))
            progress.record_checkpoint(step, path, step, written=written)
        time.sleep(0.01)
"""
WATCH = f"{sys.executable} -c 'from crashproof.cli import main; main()' watch"


class Terminal:
    """A terminal of 80 by 24 of its own server, which no other tmux sees."""

    def __init__(self, socket: Path, command: str) -> None:
        self._socket = socket
        self._ask("-f", os.devnull, "new-session", "-d", "-x", "80", "-y", "24", "sh")
        # As wide as asked, whatever the status line takes.
        self._ask("set-option", "-g", "status", "off")
        self._ask("resize-window", "-x", "80", "-y", "24")
        self.type(command)

    def type(self, text: str) -> None:
        self._ask("send-keys", "-l", text)
        self._ask("send-keys", "Enter")

    def interrupt(self) -> None:
        self._ask("send-keys", "C-c")

    def lines(self) -> list[str]:
        return self._ask("capture-pane", "-p").splitlines()

    def close(self) -> None:
        self._ask("kill-server")

    def _ask(self, *words: str) -> str:
        assert TMUX is not None
        environment = {name: value for name, value in os.environ.items() if name != "TMUX"} | {
            "TERM": "xterm-256color",
            "LC_ALL": "C.UTF-8",
            "PS1": "$ ",
            "COLUMNS": "",
            "LINES": "",
        }
        done = subprocess.run(
            [TMUX, "-u", "-S", str(self._socket), *words], capture_output=True, text=True, check=True, env=environment
        )
        return done.stdout


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[[str], Terminal]]:
    opened = []

    def open_terminal(command: str) -> Terminal:
        opened.append(Terminal(tmp_path / f"tmux{len(opened)}", command))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started = []

    def run() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", LOOP, str(tmp_path / "run")]))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def seen(terminal: Terminal, *words: str) -> list[str]:
    """The lines of the screen once all of these words are on it."""
    deadline = time.monotonic() + 60
    while True:
        lines = terminal.lines()
        if all(any(word in line for line in lines) for word in words):
            return lines
        assert time.monotonic() < deadline, "\n".join(lines)
        time.sleep(0.1)


def test_a_screen_follows_a_run_through_a_kill_and_a_restart(terminal, start, tmp_path):
    run = tmp_path / "run"
    screen = terminal(f"NO_COLOR=1 {WATCH} {run} --wait --stay --seconds 0.3; echo code=$?")
    seen(screen, "Waiting for a run")

    process = start()
    running = seen(screen, "RUNNING  process", "checkpoint at step 100")
    print("\n".join(running))
    process.send_signal(signal.SIGKILL)
    crashed = seen(screen, "CRASHED")
    print("\n".join(crashed))
    start()
    restarted = seen(screen, "RUNNING  process", "attempt 2", "steps recomputed")
    print("\n".join(restarted))
    screen.interrupt()
    seen(screen, "code=0")

    for lines in (running, crashed, restarted):
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
        text = "\n".join(lines)
        for words in ("of 20,000", "loss ", "average", "learning rate 0.001", "goodput", "newest checkpoint at step"):
            assert words in text
    assert "exited without recording a shutdown" in "\n".join(crashed)
    # The spike of step 60 is a stroke from the bottom of the curve to its top.
    tops = [line for line in running if line.strip().startswith("40 ")]
    assert 1 == len(tops)
    assert tops[0].split()[1:]


def test_without_stay_it_ends_with_the_run_and_leaves_its_last_screen(terminal, start, tmp_path):
    process = start()
    while not (tmp_path / "run" / "progress" / "metrics.jsonl").exists():
        time.sleep(0.05)
    screen = terminal(f"{WATCH} {tmp_path / 'run'} --seconds 0.3; echo code=$?")
    seen(screen, "RUNNING  process")

    process.send_signal(signal.SIGKILL)
    left = seen(screen, "code=5")

    assert any("CRASHED" in line for line in left)
    assert any("of 20,000" in line for line in left)
