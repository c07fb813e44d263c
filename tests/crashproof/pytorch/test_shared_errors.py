"""An error of one rank is told to the others, who would take its end for a loss."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import HashStore, Store

from crashproof.errors import ConfigError, RankFailed, RankLost, TeacherUnreachable
from crashproof.pytorch.shared_errors import SharedErrors, is_temporary

LOST = RankLost("working", missing=[0], seconds=1, reason="connection closed")


@pytest.fixture
def store() -> Store:
    store = HashStore()
    store.set_timeout(timedelta(seconds=20))
    return store


def end_with(error: Exception | None, store: Store, *, rank: int, num_ranks: int = 2) -> Exception | None:
    """How a rank ends in which this was raised."""
    shared = SharedErrors(store, rank=rank, num_ranks=num_ranks)
    try:
        with shared.hearing(), shared.telling():
            if error is not None:
                raise error
    except Exception as ended:
        return ended
    return None


def await_error(store: Store) -> None:
    """Until a rank has told of its error."""
    store.wait(["errors/error"])


@pytest.mark.parametrize("failed, other", [(0, 1), (1, 0)])
def test_an_error_of_one_rank_is_the_end_of_the_other(store: Store, failed: int, other: int) -> None:
    error = ConfigError("train.steps is odd.", hint="Change it; the key was sk-proj-abcdefghijklmnopqrstuvwx.")
    with ThreadPoolExecutor() as threads:
        first = threads.submit(end_with, error, store, rank=failed)
        await_error(store)
        ended = end_with(LOST, store, rank=other)

        assert error is first.result()
    assert isinstance(ended, RankFailed)
    assert f"Rank {failed} has ended with an error: train.steps is odd. Change it" in str(ended)
    assert "abcdefghijklmnop" not in str(ended)
    assert not is_temporary(ended)


@pytest.mark.parametrize(
    "error",
    [
        TeacherUnreachable("https://there", attempts=3, seconds=9, last="refused"),
        LOST,
        ValueError("unexpected"),
        None,
    ],
    ids=["teacher", "loss", "unexpected", "none"],
)
def test_what_another_start_may_mend_is_not_told(store: Store, error: Exception | None) -> None:
    assert error is end_with(error, store, rank=1)
    assert LOST is end_with(LOST, store, rank=0)


def test_the_first_error_is_the_one_that_is_named(store: Store) -> None:
    with ThreadPoolExecutor() as threads:
        own = [ConfigError("one is wrong."), ConfigError("two is wrong.")]
        first = threads.submit(end_with, own[0], store, rank=0, num_ranks=3)
        await_error(store)
        second = end_with(own[1], store, rank=1, num_ranks=3)
        third = end_with(LOST, store, rank=2, num_ranks=3)

    # One that has an error of its own ends with that.
    assert own == [first.result(), second]
    assert isinstance(third, RankFailed)
    assert "Rank 0 has ended with an error: one is wrong." == str(third)


def test_a_store_that_is_gone_leaves_the_loss() -> None:
    class Gone(Store):
        def check(self, keys: list[str]) -> bool:
            raise RuntimeError("connection closed")

    assert LOST is end_with(LOST, Gone(), rank=1)


def start_both(output_dir: Path, *overrides: str) -> list[subprocess.CompletedProcess[str]]:
    """The trainer on two ranks, started as `srun` does: rank 0 has the store."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    command = [sys.executable, "-m", "training.distill_kd", "--output-dir", str(output_dir), *overrides]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [each.communicate(timeout=150)[1] for each in started]
    return [
        subprocess.CompletedProcess([], each.returncode, "", text) for each, text in zip(started, said, strict=True)
    ]


def test_an_error_that_only_the_first_rank_can_meet_ends_all_with_2(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint_7").mkdir(parents=True)

    ended = start_both(tmp_path / "run")

    assert [2, 2] == [each.returncode for each in ended], ended
    assert "holds checkpoint_7 of a run that crashproof does not know" in ended[0].stderr
    assert "Rank 0 has ended with an error" in ended[1].stderr
