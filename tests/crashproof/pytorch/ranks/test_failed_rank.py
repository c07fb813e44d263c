"""A rank that ends with an error which another start does not mend is named by the others, and they end alike."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import json, sys
from crashproof.errors import ConfigError, CrashproofError, RankLost
from crashproof.pytorch.exit_codes import exit_code_of
from crashproof.pytorch.ranks import join_ranks

failing, kind = int(sys.argv[1]), sys.argv[2]
raised = None
try:
    with join_ranks(device_type="cpu", limit_seconds=20.0) as ranks:
        ranks.all_gather(0, "meeting")
        if ranks.rank == failing:
            raise {"config": ConfigError("train.steps is odd; the key was sk-proj-abcdefghijklmnopqrstuvwx."),
                   "unexpected": ValueError("odd"),
                   "lost": RankLost("asking", missing=[7], seconds=1.0, reason="gone")}[kind]
        ranks.all_gather(1, "averaging gradients")
except (CrashproofError, ValueError) as error:
    raised = [type(error).__name__, exit_code_of(error), str(error)]
print(json.dumps(raised))
"""


def end_both(failing: int, kind: str) -> list[Any]:
    """What each of two ranks ends with, started as `srun` does: the first one has the store."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1]), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(failing), kind],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [each.communicate(timeout=100) for each in started]
    assert [0, 0] == [each.returncode for each in started], said
    return [json.loads(out) for out, _ in said]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_rank_is_the_end_of_the_other(failing: int) -> None:
    ended = end_both(failing, "config")

    name, exit_code, text = ended[1 - failing]
    assert "ConfigError" == ended[failing][0]
    assert ("RankFailed", 2) == (name, exit_code)
    assert text.startswith(f"Rank {failing} failed while averaging gradients: ")
    assert "train.steps is odd" in text
    assert "abcdefghijklmnop" not in text


@pytest.mark.parametrize("kind", ["unexpected", "lost"])
def test_what_another_start_may_mend_is_a_loss(kind: str) -> None:
    ended = end_both(1, kind)

    assert ["RankLost", 75] == ended[0][:2]
