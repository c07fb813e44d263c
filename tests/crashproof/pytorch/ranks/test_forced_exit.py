"""A process whose interpreter does not come back."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from crashproof.pytorch.ranks import forced_exit
from crashproof.pytorch.ranks.forced_exit import ForcedExit

BEGINNING = f"""
import ctypes, sys, time
sys.path.insert(0, {str(Path(forced_exit.__file__).parent)!r})
from forced_exit import ForcedExit
exit_ = ForcedExit(75)
"""
"""By its path: importing the package takes seconds."""
KEEPS_THE_LOCK = "ctypes.PyDLL(None).sleep(60)"
"""As a C extension does that never lets go of Python's lock."""

pytestmark = pytest.mark.skipif(not ForcedExit(75).is_timed, reason="this C library has no timers with threads")


def run(program: str) -> tuple[int, str]:
    ended = subprocess.run(
        [sys.executable, "-c", BEGINNING + program], capture_output=True, text=True, timeout=100, check=False
    )
    return ended.returncode, ended.stderr.strip()


def test_code_that_keeps_the_interpreters_lock_is_ended_with_the_code_and_the_words():
    code, said = run(f"exit_.postpone(0.1, 'Rank 1 is 100 % stuck'); {KEEPS_THE_LOCK}")

    assert (75, True) == (code, said.endswith("Rank 1 is 100 % stuck")), said


def test_words_of_any_length_are_cut():
    code, said = run(f"exit_.postpone(0.1, 5000 * '%'); {KEEPS_THE_LOCK}")

    assert (75, 1000) == (code, said.count("%"))


def test_who_postpones_or_cancels_goes_on():
    program = (
        "for _ in range(8):\n    exit_.postpone(0.8, 'late')\n    time.sleep(0.2)\nexit_.cancel(); time.sleep(1.5)"
    )

    assert (0, "") == run(program)


def test_a_process_that_hangs_while_it_exits_ends_too():
    program = f"import atexit; atexit.register(lambda: {KEEPS_THE_LOCK}); exit_.postpone(0.1, 'It does not end')"
    begun_at = time.monotonic()

    assert 75 == run(program)[0]
    assert time.monotonic() - begun_at < 50


def test_an_end_at_once_says_why_and_where_each_thread_stands():
    code, said = run("def hang():\n    exit_.now('Rank 1 gives up')\nhang()")

    assert (75, True, True) == (code, said.startswith("Rank 1 gives up\n"), "in hang" in said), said


def test_it_ends_also_where_nothing_can_be_said():
    assert (75, "") == run("import os, sys; os.close(2); sys.stderr = None; exit_.now('Rank 1 gives up')")
