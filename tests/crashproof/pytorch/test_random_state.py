import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from crashproof.pytorch.checkpoint_file import load_checkpoint, save_checkpoint
from crashproof.pytorch.random_state import capture_random_state, restore_random_state, seed_everything


@pytest.fixture(autouse=True)
def generators_as_they_were() -> Iterator[None]:
    before = capture_random_state()
    yield
    restore_random_state(before)


def drawn() -> list[float]:
    """From every generator, with the odd half of a Gaussian pair left in it."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.standard_normal()),
        *torch.randn(3).tolist(),
        float(torch.nn.functional.dropout(torch.ones(64)).sum()),
    ]


def test_one_seed_sets_every_generator() -> None:
    seed_everything(2**40 + 3)
    first = drawn()
    seed_everything(2**40 + 3)

    assert first == drawn()


def test_after_a_restore_the_same_numbers_come_again() -> None:
    drawn()
    state = capture_random_state()
    expected = drawn()
    drawn()

    restore_random_state(state)

    assert expected == drawn()


def test_the_state_survives_a_checkpoint_file(tmp_path: Path) -> None:
    drawn()
    save_checkpoint(tmp_path / "c.pt", {"random": capture_random_state()})
    expected = drawn()

    restore_random_state(load_checkpoint(tmp_path / "c.pt")["random"])

    assert expected == drawn()


def test_a_state_of_devices_that_are_not_here_is_restored_as_far_as_it_goes() -> None:
    state = capture_random_state()
    expected = drawn()

    restore_random_state(state | {"cuda": [torch.zeros(16, dtype=torch.uint8)], "mps": torch.zeros(16)})

    assert expected == drawn()
