"""Random walks over records, overwrites, damage, kills, rollbacks, retention and repair: no promise is broken."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from checkpoint_walks import Walk


def walk(folder: Path, seed: int, num_operations: int) -> None:
    try:
        Walk(folder, seed).run(num_operations)
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.parametrize("seed", range(60))
def test_a_walk_breaks_no_promise(tmp_path, seed):
    walk(tmp_path, seed, 25)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_twenty_thousand_walks_break_no_promise(tmp_path_factory):
    """SEED=n repeats one, ROUNDS=n sets how many."""
    first = int(os.environ.get("SEED", random.SystemRandom().randrange(10**9)))
    rounds = int(os.environ.get("ROUNDS", "20000"))
    print(f"\nfirst seed {first}, {rounds} walks")
    for number in range(rounds):
        folder = tmp_path_factory.mktemp("walk")
        walk(folder, first + number, 25)
    print(f"{rounds} walks of 25 operations, 0 broken promises")
