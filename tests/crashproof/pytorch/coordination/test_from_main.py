"""What the main process makes reaches all, or none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from forked_ranks import free_port

from crashproof.errors import BudgetExhausted, RankFailed, RankLost, TeacherUnreachable
from crashproof.pytorch.coordination.from_main import FromMain, is_raised_by_all
from crashproof.pytorch.exit_codes import exit_code_of
from crashproof.pytorch.interrupts import Interrupts, StopRequested
from crashproof.pytorch.ranks import SingleRank

PROGRAM = """
import json, os, signal, sys, time
from crashproof.errors import BudgetExhausted, CrashproofError
from crashproof.pytorch.exit_codes import exit_code_of
from crashproof.pytorch.coordination.from_main import FromMain, is_raised_by_all
from crashproof.pytorch.interrupts import Interrupts, StopRequested
from crashproof.pytorch.ranks import join_ranks

def raised(work):
    try:
        work()
    except (CrashproofError, StopRequested, ValueError) as error:
        return [type(error).__name__, exit_code_of(error), is_raised_by_all(error)]

def looks(*found):
    found = iter(found)
    def look():
        time.sleep(0.4)
        answer = next(found)
        if isinstance(answer, Exception):
            raise answer
        return answer
    return look

told = {}
with Interrupts() as interrupts, join_ranks(device_type="cpu", limit_seconds=1.0) as ranks:
    main = FromMain(ranks, interrupts)
    # Together longer than the limit of one operation.
    told["part"] = main.receive(looks(*[None] * 4, ["first", {"second": 2}]), "asking")
    told["failed"] = raised(lambda: main.receive(looks(None, BudgetExhausted("No money.")), "asking"))
    told["unexpected"] = raised(lambda: main.receive(looks(ValueError("odd")), "asking"))
    told["again"] = main.receive(looks(["a", "b"]), "asking")
    main.wait_for(lambda: time.sleep(1.5), "draining")
    told["drained"] = raised(lambda: main.wait_for(looks(BudgetExhausted("No money.")), "draining"))
    if not ranks.is_main:
        os.kill(os.getpid(), signal.SIGTERM)
    told["stopped"] = raised(lambda: main.receive(looks(*[None] * 9), "asking"))
    main.wait_for(lambda: time.sleep(0.6), "draining")
print(json.dumps(told))
"""


def test_two_processes_get_their_parts_fail_alike_and_stop_together() -> None:
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [each.communicate(timeout=100) for each in started]

    assert [0, 0] == [each.returncode for each in started], said
    main, other = [json.loads(out) for out, _ in said]
    assert {
        "part": "first",
        "failed": ["BudgetExhausted", 2, True],
        "unexpected": ["ValueError", 1, True],
        "again": "a",
        "drained": ["BudgetExhausted", 2, True],
        "stopped": ["StopRequested", 75, False],
    } == main
    assert {
        "part": {"second": 2},
        "failed": ["RankFailed", 2, True],
        "unexpected": ["RankFailed", 1, True],
        "again": "b",
        "drained": ["RankFailed", 2, True],
        "stopped": ["StopRequested", 75, False],
    } == other


class LosingRanks(SingleRank):
    """Ranks of which the other one is gone."""

    num_ranks = 2

    def all_gather(self, value: object, what: str) -> list[object]:
        raise RankLost(what, missing=[1], seconds=1.0, reason="it is gone")


def test_a_process_that_is_alone_gets_what_it_makes() -> None:
    made = iter([None, None, ["mine"]])

    assert "mine" == FromMain(SingleRank(), Interrupts()).receive(lambda: next(made), "asking")


def test_a_process_that_is_alone_stops_when_it_is_asked_to() -> None:
    interrupts = Interrupts()
    interrupts.received = signal.SIGTERM

    with pytest.raises(StopRequested):
        FromMain(SingleRank(), interrupts).receive(lambda: None, "asking")
    FromMain(SingleRank(), interrupts).wait_for(lambda: time.sleep(0.01), "draining")


def test_a_lost_rank_is_not_raised_by_all() -> None:
    with pytest.raises(RankLost) as raised:
        FromMain(LosingRanks(), Interrupts()).receive(lambda: None, "asking")

    assert not is_raised_by_all(raised.value)


@pytest.mark.parametrize(
    "error, expected",
    [
        (BudgetExhausted("No money."), 2),
        (TeacherUnreachable("http://x", attempts=2, seconds=1.0, last="refused"), 75),
        (RankLost("asking", missing=[], seconds=1.0, reason="gone"), 75),
        (StopRequested("SIGTERM"), 75),
        (RankFailed(0, what="asking", reason="It was asked to stop.", exit_code=75), 75),
        (ValueError("odd"), 1),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else "",
)
def test_errors_end_with_the_code_of_what_to_do_next(error: Exception, expected: int) -> None:
    assert expected == exit_code_of(error)
