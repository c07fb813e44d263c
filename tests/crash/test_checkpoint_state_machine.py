"""The operations of the walks as a state machine, so that a broken promise is shrunk to the few that break it."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from checkpoint_walks import Walk
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from crashproof import RunReader

CHANCES = st.randoms(use_true_random=False)
LIMITS = settings(
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)


class Checkpoints(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="crashproof-machine-"))
        self.walk = Walk(self.folder, 0)
        self.walk.open()

    def act(self, operation: str, chance: random.Random) -> None:
        self.walk.chance = chance
        getattr(self.walk, operation)()
        self.walk.order += 1

    @rule(chance=CHANCES)
    def train(self, chance):
        self.act("train", chance)

    @rule(chance=CHANCES)
    def save(self, chance):
        self.act("save", chance)

    @rule(chance=CHANCES)
    def save_without_recording(self, chance):
        self.act("save_without_recording", chance)

    @rule(chance=CHANCES)
    def kill_and_resume(self, chance):
        self.act("kill_and_resume", chance)

    @rule(chance=CHANCES)
    def resume_from_an_older_one(self, chance):
        self.act("resume_from_an_older_one", chance)

    @rule(chance=CHANCES)
    def go_back(self, chance):
        self.act("go_back", chance)

    @rule(chance=CHANCES)
    def damage(self, chance):
        self.act("damage", chance)

    @rule(chance=CHANCES)
    def add_a_file(self, chance):
        self.act("add_a_file", chance)

    @rule(chance=CHANCES)
    def remove(self, chance):
        self.act("remove", chance)

    @rule(chance=CHANCES)
    def repair(self, chance):
        self.act("repair", chance)

    @rule(chance=CHANCES)
    def lose_a_snapshot(self, chance):
        self.act("lose_a_snapshot", chance)

    @invariant()
    def a_reader_knows_what_the_writer_knows(self):
        assert self.walk.tracker is not None
        session = RunReader.open(self.folder).session()
        assert self.walk.tracker.session.checkpoints.keys() == session.checkpoints.keys()

    def teardown(self) -> None:
        try:
            self.walk.kill_and_resume()
        finally:
            self.walk.kill()
            shutil.rmtree(self.folder, ignore_errors=True)


def test_no_sequence_of_operations_breaks_a_promise():
    run_state_machine_as_test(Checkpoints, settings=settings(LIMITS, max_examples=40))


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_no_sequence_of_thousands_breaks_a_promise():
    """ROUNDS=n sets how many."""
    examples = int(os.environ.get("ROUNDS", "5000"))
    run_state_machine_as_test(Checkpoints, settings=settings(LIMITS, max_examples=examples, derandomize=False))
    print(f"\n{examples} examples of at most 25 operations, 0 broken promises")
