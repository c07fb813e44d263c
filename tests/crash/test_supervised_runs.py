"""`crashproof run` gives the right verdict on all that can happen to a training, with real children."""

from __future__ import annotations

from pathlib import Path

import pytest
from supervised_program import main as train
from supervising import SCENARIOS, NoMemoryGroup

from crashproof import RunReader
from crashproof.records.events import ProcessEnded

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are seen in /proc")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The last checkpoint of a run to which nothing happens."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert 0 == train(folder, "finishes", 12)
    return (folder / "checkpoint_12.json").read_bytes()


def check(name: str, folder: Path, weights: bytes) -> None:
    mode, run_it, code, causes = SCENARIOS[name]
    try:
        run = run_it(folder, mode)
    except NoMemoryGroup:
        pytest.skip("no control group may be made here")

    assert causes == run.causes, run.said
    assert code == run.code
    assert [] == run.left_processes()
    if code == 0:
        assert weights == run.weights()
    recorded = [each for each in RunReader.open(folder).events() if isinstance(each, ProcessEnded)]
    assert causes == [each.cause for each in recorded]
    assert [] == [each for each in RunReader.open(folder).problems() if mode != "damages_newest"]
    for each in recorded:
        assert (each.cause == "hang") == (each.stacks is not None)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_verdict_is_right_and_nothing_is_left(name, tmp_path, uninterrupted):
    check(name, tmp_path / "run", uninterrupted)


@pytest.mark.long
@pytest.mark.parametrize("trial", range(1, 20))
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_verdict_is_right_every_time(name, trial, tmp_path, uninterrupted):
    check(name, tmp_path / "run", uninterrupted)
