"""Two processes, each told its rank as torchrun would."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch

from crashproof.pytorch.ranks import SingleRank, join_ranks

BEGINNING = """
import os, signal, sys, time
import torch
from crashproof.errors import RankLost
from crashproof.pytorch.ranks import join_ranks
rank = int(os.environ["RANK"])
with join_ranks(device_type="cpu", limit_seconds=float(os.environ["LIMIT"])) as ranks:
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run(body: str, *, num_ranks: int = 2, limit: float = 30) -> list[subprocess.CompletedProcess[str]]:
    """What each rank said and how it ended."""
    program = BEGINNING + "".join(f"    {line}\n" for line in body.strip().splitlines())
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(num_ranks),
        "LIMIT": str(limit),
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    started: list[Any] = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    said = [each.communicate(timeout=100) for each in started]
    return [
        subprocess.CompletedProcess([], each.returncode, *texts) for each, texts in zip(started, said, strict=True)
    ]


def lines(ended: list[subprocess.CompletedProcess[str]]) -> list[str]:
    assert {0} == {each.returncode for each in ended}, [each.stderr for each in ended]
    return [each.stdout.strip() for each in ended]


def test_a_process_without_torchrun_is_the_only_one() -> None:
    with join_ranks(device_type="cpu", limit_seconds=1, environment={}) as ranks:
        assert isinstance(ranks, SingleRank)
        assert ranks.is_main
        assert ("a", ["a"]) == (ranks.broadcast("a", "asking"), ranks.all_gather("a", "asking"))
        assert torch.equal(torch.ones(2), ranks.all_reduce(torch.ones(2)))
        ranks.share_stop_request(wants_to_stop=True)
        assert ranks.is_stop_agreed
        with ranks.main_process_first("preparing"), ranks.collective("working"):
            assert ranks is ranks.for_background_thread()


def test_what_one_has_all_know_and_a_stop_is_agreed_at_the_next_step() -> None:
    ended = run(
        """
told = ranks.broadcast({"path": rank}, "choosing"), ranks.all_gather(rank, "listing")
sums = ranks.all_reduce(torch.tensor([1.0 + rank, 10.0])).tolist()
beside = ranks.for_background_thread().all_gather(rank * 2, "beside")
agreed = []
for step in range(4):
    ranks.share_stop_request(step == 1 and rank == 1)
    agreed.append(ranks.is_stop_agreed)
print(told, sums, beside, agreed)
"""
    )

    expected = "({'path': 0}, [0, 1]) [3.0, 20.0] [0, 2] [False, False, True, False]"
    assert [expected] * 2 == lines(ended)


def test_the_others_wait_for_the_main_process_as_long_as_it_lives() -> None:
    ended = run(
        """
begun = time.monotonic()
with ranks.main_process_first("preparing"):
    if rank == 0:
        time.sleep(4)
print(time.monotonic() - begun > 3.5)
# The main process has the store; whoever asks it after its end asks nobody.
ranks.broadcast(0, "ending")
""",
        limit=2,
    )

    assert ["True", "True"] == lines(ended)


@pytest.mark.parametrize(
    "body, words",
    [
        (
            """
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    ranks.all_gather(rank, "listing files")
except RankLost as error:
    print(error.missing, error)
    os._exit(3)
""",
            r"^\[1\] Lost rank 1 \(.*, pid \d+\) while listing files \(limit 3 s\): its process has ended \(",
        ),
        (
            """
if rank == 1:
    time.sleep(12)
try:
    ranks.broadcast(rank, "choosing")
except RankLost as error:
    print(error.missing, error)
    os._exit(3)
""",
            r"^\[1\] Lost rank 1 \(.*\) while choosing \(limit 3 s\): it is alive, and has been working on its own",
        ),
    ],
    ids=["dead", "late"],
)
def test_who_is_lost_is_named_within_the_limit(body: str, words: str) -> None:
    ended = run(body, limit=3)

    assert 3 == ended[0].returncode, ended[0].stderr
    assert re.search(words, ended[0].stdout), ended[0].stdout


def test_an_error_of_ones_own_stays_what_it_is() -> None:
    ended = run(
        """
try:
    with ranks.collective("multiplying"):
        torch.ones(2) @ torch.ones(3)
except RankLost:
    print("lost")
except RuntimeError as error:
    print("inconsistent" in str(error))
"""
    )

    assert ["True", "True"] == lines(ended)


def test_a_rank_that_is_stopped_is_named_and_ended() -> None:
    ended = run(
        """
if rank == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
try:
    ranks.all_gather(rank, "listing files")
except RankLost as error:
    print(error.missing, error)
    os._exit(3)
""",
        limit=2,
    )

    assert (3, -signal.SIGKILL) == (ended[0].returncode, ended[1].returncode)
    assert "while listing files (limit 2 s): stopped (state T) (Timed out" in ended[0].stdout, ended[0].stdout
    assert "is stopped (state T) for" in ended[1].stderr, ended[1].stderr


def join(address: dict[str, str], *, limit: float) -> subprocess.CompletedProcess[str]:
    """A program that does nothing but join, as rank 0 or 1 of 2."""
    program = (
        "from crashproof.pytorch.ranks import join_ranks\n"
        f"with join_ranks(device_type='cpu', limit_seconds={limit}):\n    pass\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "TORCH_CPP_LOG_LEVEL": "ERROR", **address},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_missing_processes_are_reported_within_the_limit() -> None:
    ended = join({"MASTER_PORT": str(free_port()), "RANK": "0"}, limit=2)

    assert 1 == ended.returncode
    assert "while joining the other processes (limit 2 s)" in ended.stderr


def test_a_store_that_accepts_and_never_answers_is_not_waited_for() -> None:
    """As rank 0 is, or the agent of torchrun, when it is stopped, or its host cut off, at a bad moment."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ended = join({"MASTER_PORT": str(silent.getsockname()[1]), "RANK": "1"}, limit=1)

    assert 75 == ended.returncode, ended.stderr
    assert re.search(
        r"^Rank 1 \(.*, pid \d+\) gives up after \d+ s of joining the other processes \(limit 1 s\)", ended.stderr
    ), ended.stderr
