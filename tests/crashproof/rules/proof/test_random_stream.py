from __future__ import annotations

import pytest
from proof_runs import difference_between, life, seen

from crashproof.rules.proof.random_stream import Draws, draws_of, generators_in_use

STATES = ["a:10:x", "a:600:x", "b:50:x", "c:600:x", "d:3:x"]
CONTROL = {step: seen(step, random__python=state) for step, state in enumerate(STATES, 1)}


@pytest.mark.parametrize(
    "found, expected",
    [
        ("a:10:x", (Draws.BEGAN_AGAIN, 0)),
        ("b:52:x", (Draws.AHEAD, 2)),
        ("b:50:y", (Draws.AHEAD, 0)),
        ("b:49:x", (Draws.BEHIND, 1)),
        ("c:1:x", (Draws.AHEAD, 575)),
        ("a:620:x", (Draws.BEHIND, 54)),
        ("d:3:x", (Draws.AHEAD, 0)),
        ("z:3:x", (Draws.UNRELATED, 0)),
        ("a digest", (Draws.UNRELATED, 0)),
    ],
)
def test_a_state_tells_how_far_the_generator_is(found, expected):
    resumed = life(2, seen(3, random__python=found))
    difference = difference_between(CONTROL[3], resumed, "random.python")

    assert expected == draws_of("random.python", difference, CONTROL)


def test_a_generator_is_in_use_if_its_state_changes():
    control = {step: seen(step, random__numpy="same:1:x") for step in (1, 2, 3)}

    assert {"random.python"} == generators_in_use(control, frozenset({"random.python", "random.numpy"}))
