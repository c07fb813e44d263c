from __future__ import annotations

import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from crashproof.tracking.witness.random_states import random_states

torch = pytest.importorskip("torch")
DRAWS = {"python": random.random, "numpy": np.random.rand, "torch": lambda: torch.rand(1)}


def state_of(name: str) -> tuple[str, int, str]:
    block, position, rest = random_states()[f"random.{name}"].split(":")
    return block, int(position), rest


@pytest.fixture(autouse=True)
def seeded():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


@pytest.mark.parametrize("name, num", [("python", 2), ("numpy", 2), ("torch", 1)])
def test_a_draw_moves_its_generator_alone_by_the_numbers_that_it_takes(name, num):
    DRAWS[name]()
    before = random_states()
    block, position, rest = state_of(name)
    DRAWS[name]()

    assert (block, position + num, rest) == state_of(name)
    assert {f"random.{name}"} == {key for key, value in random_states().items() if value != before[key]}


@pytest.mark.parametrize("name", DRAWS)
def test_a_generator_that_was_just_seeded_has_used_up_its_block(name):
    assert 624 == state_of(name)[1]


@pytest.mark.parametrize("name", DRAWS)
def test_the_block_changes_when_it_is_used_up(name):
    blocks = set()
    for _ in range(700):
        DRAWS[name]()
        blocks.add(state_of(name)[0])

    assert 2 <= len(blocks) <= 3


def test_a_normal_number_that_is_kept_is_part_of_the_state():
    random.gauss(0, 1)
    kept = state_of("python")
    random.gauss(0, 1)

    assert kept[:2] == state_of("python")[:2]
    assert kept[2] != state_of("python")[2]


def test_devices_have_generators_of_their_own(monkeypatch):
    states = [
        torch.zeros(16, dtype=torch.uint8),
        torch.ones(16, dtype=torch.uint8),
        torch.zeros(3, dtype=torch.uint8),
    ]
    cuda = SimpleNamespace(is_initialized=lambda: True, get_rng_state_all=lambda: states)
    fake = SimpleNamespace(cuda=cuda, get_rng_state=lambda: torch.zeros(5, dtype=torch.uint8))
    monkeypatch.setitem(sys.modules, "torch", fake)
    found = random_states()

    assert [0, 72340172838076673, 0] == [int(found[f"random.cuda.{place}"].split(":")[1]) for place in range(3)]
    assert "0" == found["random.torch"].split(":")[1]


def test_libraries_that_were_not_imported_have_none(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.delitem(sys.modules, "numpy")

    assert ["random.python"] == list(random_states())
