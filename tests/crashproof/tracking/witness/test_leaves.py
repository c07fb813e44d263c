from __future__ import annotations

import random
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest

from crashproof.tracking.witness.leaves import leaves_of

torch = pytest.importorskip("torch")


def values_of(value: object) -> dict[str, str]:
    leaves = leaves_of({"x": value})
    assert {} == leaves.unreadable
    return leaves.values


@pytest.mark.parametrize(
    "value, expected",
    [
        (1, "1"),
        (0.1, "0.1"),
        (float("nan"), "nan"),
        (None, "None"),
        (True, "True"),
        ("word", "'word'"),
    ],
)
def test_a_short_value_stands_for_itself(value, expected):
    assert {"x": expected} == values_of(value)


@pytest.mark.parametrize(
    "one, other",
    [
        pytest.param("a" * 100, "a" * 101, id="texts"),
        pytest.param(b"a", b"b", id="bytes"),
        pytest.param(0.1, 0.1 + 2**-56, id="floats"),
        pytest.param(np.zeros(2), np.zeros(2, dtype=np.float32), id="types-of-arrays"),
        pytest.param(np.zeros((2, 3)), np.zeros((3, 2)), id="shapes-of-arrays"),
        pytest.param(np.arange(6).reshape(2, 3), np.arange(6).reshape(3, 2).T, id="orders-of-arrays"),
        pytest.param(np.float64(1), np.float64(2), id="numpy-scalars"),
        pytest.param(torch.zeros(3), -torch.zeros(3), id="zeros-with-a-sign"),
        pytest.param(
            torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16), id="types-of-tensors"
        ),
        pytest.param(torch.zeros(0), torch.zeros(0, 1), id="empty-tensors"),
        pytest.param(list(range(100)), list(range(1, 101)), id="long-lists"),
        pytest.param({3}, {4}, id="sets"),
        pytest.param(random.Random(1), random.Random(2), id="pythons-generators"),
        pytest.param(np.random.default_rng(1), np.random.default_rng(2), id="numpys-generators"),
        pytest.param(np.random.RandomState(1), np.random.RandomState(2), id="numpys-old-generators"),
        pytest.param(torch.Generator().manual_seed(1), torch.Generator().manual_seed(2), id="torchs-generators"),
    ],
)
def test_values_that_differ_have_other_leaves(one, other):
    assert values_of(one) != values_of(other)
    assert values_of(one) == values_of(one)


def test_nested_state_is_named():
    point = namedtuple("point", "x y")
    state = {"a": [1, {"b": 2}], 3: (4,), "p": point(5, 6), "n": SimpleNamespace(q=7)}

    assert {"x.a.0": "1", "x.a.1.b": "2", "x.3.0": "4", "x.p.x": "5", "x.p.y": "6", "x.n.q": "7"} == values_of(state)


def test_what_training_changes_of_a_module_is_named():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1))
    model[0].bias.requires_grad_(False)

    assert {
        *("x.0.weight", "x.1.weight", "x.1.bias"),
        *("x.1.running_mean", "x.1.running_var", "x.1.num_batches_tracked"),
    } == values_of(model).keys()


def test_an_optimizer_and_a_schedule_are_named():
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)

    found = values_of({"optimizer": optimizer, "schedule": schedule})
    assert "0.5" == found["x.optimizer.param_groups.0.lr"]
    assert "0" == found["x.schedule.last_epoch"]
    assert "x.optimizer.state.0.exp_avg" in found


def test_what_cannot_be_read_is_named_and_the_rest_is_kept():
    class Fails:
        def state_dict(self):
            raise RuntimeError("not now")

    deep: list[object] = []
    for _ in range(20):
        deep = [deep]
    objects = np.array([object()], dtype=object)
    leaves = leaves_of({"a": object(), "b": Fails(), "c": deep, "d": objects, "e": 1, "f": torch.nn.Linear})

    assert {"e": "1"} == leaves.values
    assert ["a", "b", "c", "d", "f"] == [name[0] for name in leaves.unreadable]
    assert "Fails (not now)" == leaves.unreadable["b"]


def test_a_sharded_tensor_is_digested_by_its_own_part():
    whole = SimpleNamespace(shape=(4,), dtype=torch.float32, to_local=lambda: torch.zeros(2))

    assert values_of(whole) == values_of(whole)
