from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from crashproof.disk.run_folder import RunFolder
from crashproof.disk.supervision.private_folder import PrivateFolder
from crashproof.records.supervision import Phase
from crashproof.supervisor.run_watch import RunWatch
from crashproof.supervisor.state import KnownChild, SupervisorState, load_state, save_state, supervisor_of
from crashproof.tracking.supervised.link import FOLDER_VARIABLE, RUN_FILE


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A supervisor's folder, named in this process's environment."""
    folder = PrivateFolder.claim(tmp_path / "private", "one")
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder.path))
    yield folder.path
    folder.release()


@pytest.fixture
def watch(private: Path) -> Callable[..., RunWatch]:
    return lambda run=None, files=(): RunWatch(private, run=run, files=files)


def test_what_was_not_opened_shows_no_progress(watch, run_dir, tmp_path):
    assert watch().look().phase is None
    assert Phase.STARTING == watch(run=RunFolder.under(run_dir)).look().phase
    assert Phase.TRAINING == watch(files=[tmp_path / "log"]).look().phase
    assert watch().verified() is None
    assert watch().files() is None
    assert [] == watch().save_seconds()
    assert "step 0" == watch().newest_checkpoint_in_words()


def test_files_that_grow_are_progress(watch, tmp_path):
    seen = watch(files=[tmp_path / "log"])
    looks = [seen.look().progress]
    for text in ("a", "ab", "ab"):
        (tmp_path / "log").write_text(text)
        looks.append(seen.look().progress)

    assert [True, True, False] == [earlier != later for earlier, later in pairwise(looks)]


def test_the_run_that_is_opened_is_followed(watch, open_tracker, update, save_checkpoint, run_dir):
    seen = watch()
    tracker = open_tracker()
    starting = seen.look()
    update(tracker, 1)
    training = seen.look()
    save_checkpoint(tracker, 1, seconds=2.0, save_seconds=30.0)

    assert (Phase.STARTING, Phase.TRAINING) == (starting.phase, training.phase)
    assert starting.progress != training.progress
    assert RunFolder.under(run_dir).progress == seen.folder.progress
    assert (1, [30.0]) == (seen.verified(), seen.save_seconds())
    assert "checkpoint_1.pt (step 1)" == seen.newest_checkpoint_in_words()
    assert seen.resumed_from(seen.session()).checkpoint_step == 1


@pytest.mark.parametrize("phase", ["saving", "evaluating", "compiling", "waiting"])
def test_a_phase_is_shown_while_it_lasts(phase, watch, open_tracker, update):
    seen, tracker = watch(), open_tracker()
    update(tracker, 1)
    with tracker.phase("evaluating"), tracker.phase(phase):
        within = seen.look().phase

    assert (phase, Phase.TRAINING) == (within, seen.look().phase)


def test_a_closed_run_is_finishing(watch, open_tracker, update):
    seen, tracker = watch(), open_tracker()
    update(tracker, 1)
    seen.look()
    tracker.close()

    assert Phase.FINISHING == seen.look().phase


def test_a_phase_that_is_none_is_an_error(open_tracker):
    with pytest.raises(ValueError, match="sleeping"):
        open_tracker().phase("sleeping")


def test_an_alert_is_no_progress(watch, open_tracker, update):
    seen, tracker = watch(), open_tracker()
    update(tracker, 1)
    before = seen.look()
    update(tracker, 2, loss=float("nan"))
    tracker.save()
    after = seen.look()

    assert before.progress != after.progress
    assert seen.look() == after


def test_a_file_that_is_no_record_of_a_run_is_ignored(watch, private):
    (private / RUN_FILE).write_text("{")

    assert watch().look().phase is None


def test_a_checkpoint_under_way_changes_the_files_and_a_log_does_not(watch, open_tracker, run_dir):
    open_tracker()
    seen = watch()
    seen.look()
    before = seen.files()
    for name in ("train.log", "wandb/run.bin", "progress/more", "events.out.tfevents.1"):
        (run_dir / name).parent.mkdir(exist_ok=True)
        (run_dir / name).write_text("x")
    after_logs = seen.files()
    (run_dir / "checkpoint_5").mkdir()
    (run_dir / "checkpoint_5" / "shard").write_text("x")

    assert before == after_logs
    assert after_logs != seen.files()


def test_a_process_without_a_supervisor_announces_nothing(tmp_path, monkeypatch, open_tracker: Any):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "gone"))
    tracker = open_tracker()
    with tracker.phase("saving"):
        pass

    assert not (tmp_path / "gone").exists()


def test_a_folder_that_cannot_be_written_is_told_once_and_costs_nothing(tmp_path, monkeypatch, open_tracker, caplog):
    (tmp_path / "phase").mkdir()
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    open_tracker()

    assert 1 == caplog.text.count("sees no hang of it")


def test_the_state_of_a_killed_supervisor_is_for_the_same_boot(tmp_path):
    folder = PrivateFolder.claim(tmp_path / "private", "one")
    child = KnownChild(pid=7, start_ticks=1, started_at=5.0, verified_before=None)
    before = load_state(folder, "boot-1")
    problem = save_state(folder, SupervisorState(boot_id="boot-1", pid=3, child=child))

    assert before is None
    assert "" == problem
    assert child == load_state(folder, "boot-1").child
    assert load_state(folder, "boot-2") is None
    folder.write("state.json", b"{")
    assert load_state(folder, "boot-1") is None
    folder.release()


def test_a_state_that_cannot_be_kept_is_told(tmp_path):
    folder = PrivateFolder.claim(tmp_path / "private", "one")
    (folder.path / "state.json").mkdir()

    assert "state.json" in save_state(folder, SupervisorState(boot_id="", pid=3))
    folder.release()


def test_a_process_without_a_supervisor_has_none():
    assert supervisor_of(2**22 + 1) is None


def test_a_phase_in_which_the_run_is_closed_ends_quietly(watch, open_tracker, update):
    seen, tracker = watch(), open_tracker()
    update(tracker, 1)
    with tracker.phase("saving"):
        tracker.close()

    assert Phase.FINISHING == seen.look().phase
