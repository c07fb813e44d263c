from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from crashproof import training_progress_context
from crashproof.errors import ConfigError
from crashproof.records.proof.assignment import ASSIGNMENT, WITNESS, Assignment, Moment, Stop
from crashproof.records.proof.environment import ENVIRONMENT_VARIABLE
from crashproof.records.proof.witness import Refused, RunOpened, Seen, Waiting, WitnessLine


@pytest.fixture
def proof(tmp_path, monkeypatch):
    """Put this process under a proof, as `crashproof prove` would."""

    def begin(stop: Stop | None = None, *, prover: int | None = None, **more: object) -> Path:
        place = tmp_path / "start"
        place.mkdir()
        assignment = Assignment(output_dir=str(tmp_path / "run"), prover=prover or os.getpid(), stop=stop, **more)
        (place / ASSIGNMENT).write_bytes(msgspec.json.encode(assignment))
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(place))
        return place / WITNESS

    return begin


def lines_of(path: Path) -> list[WitnessLine]:
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [msgspec.json.decode(line, type=WitnessLine) for line in lines]


def shown(path: Path) -> list[tuple[int, dict[str, str], list[str] | None]]:
    """What was seen beside the random states."""
    seen = [each for each in lines_of(path) if isinstance(each, Seen)]
    return [(each.step, each.values, each.samples) for each in seen if "random.python" not in each.values]


def test_without_a_proof_nothing_is_shown(tmp_path, update):
    with training_progress_context({}, tmp_path / "run", 10) as progress:
        progress.witness(model={"a": 1})
        update(progress, 1)

        assert not progress.tracker.is_under_proof
    assert ["run"] == [path.name for path in tmp_path.iterdir()]


def test_off_the_main_process_nothing_is_shown(tmp_path, proof):
    proof()
    with training_progress_context({}, tmp_path / "run", 10, is_main_process=False) as progress:
        progress.witness(model={"a": 1})

    assert not (tmp_path / "start" / WITNESS).exists()


def test_a_step_is_shown_after_its_update(tmp_path, proof, update):
    witness = proof()
    with training_progress_context({}, tmp_path / "run", 10) as progress:
        for step in (1, 2):
            update(progress, step)
            progress.witness(model={"a": step}, batch=[7, step], scaler=None)

        assert progress.tracker.is_under_proof
    opened, *rest = lines_of(witness)
    assert isinstance(opened, RunOpened)
    assert str(tmp_path / "run" / "progress") == opened.progress
    assert [(1, {"model.a": "1"}, ["7", "1"]), (2, {"model.a": "2"}, ["7", "2"])] == shown(witness)
    assert 4 == len(rest)


def test_a_loop_may_show_a_step_before_it_reports_it(tmp_path, proof, update):
    witness = proof()
    with training_progress_context({}, tmp_path / "run", 10) as progress:
        for step in (1, 2):
            progress.witness(model={"a": step})
            update(progress, step)

    assert [(1, {"model.a": "1"}, None), (2, {"model.a": "2"}, None)] == shown(witness)


def test_states_are_digested_at_the_steps_that_are_asked_for(tmp_path, proof, update):
    witness = proof(full_steps=[2])
    with training_progress_context({}, tmp_path / "run", 10) as progress:
        for step in (1, 2):
            update(progress, step)
            progress.witness(model={"a": step}, batch=[step])

    assert [(1, {}, ["1"]), (2, {"model.a": "2"}, ["2"])] == shown(witness)


def test_a_run_elsewhere_is_refused(tmp_path, proof):
    witness = proof()
    with pytest.raises(ConfigError, match="outside"):
        training_progress_context({}, tmp_path / "mine", 10).__enter__()

    assert [Refused(progress=str(tmp_path / "mine" / "progress"))] == lines_of(witness)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    "stop, expected",
    [
        pytest.param(Stop(moment=Moment.MID_EPOCH, step=2), [1, 2], id="after-a-step"),
        pytest.param(Stop(moment=Moment.AFTER_A_RESUME, num_updates=1), [1], id="after-an-update"),
        pytest.param(Stop(moment=Moment.IN_A_SAVE, step=3), [1, 2, 3], id="in-a-save"),
    ],
)
def test_a_process_waits_until_the_proof_is_over(stop, expected, tmp_path, proof, update, save_checkpoint):
    prover = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    witness = proof(stop, prover=prover.pid)

    def train() -> None:
        with training_progress_context({}, tmp_path / "run", 4) as progress:
            for step in range(1, 5):
                update(progress, step)
                save_checkpoint(progress, step)

    training = threading.Thread(target=train)
    training.start()
    deadline = time.monotonic() + 30
    while not any(isinstance(each, Waiting) for each in lines_of(witness)) and time.monotonic() < deadline:
        time.sleep(0.01)
    waited_at = [each.step for each in lines_of(witness) if isinstance(each, Seen)]
    prover.communicate()
    training.join(30)

    assert expected == waited_at
    # Nobody kills it, so it trains to the end.
    assert [1, 2, 3, 4] == [each.step for each in lines_of(witness) if isinstance(each, Seen)]
