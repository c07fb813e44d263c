"""What people and programs put into a checkpoint's folder is no part of the checkpoint."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign_checkpoints import write_hugging_face, write_safetensors
from typer.testing import CliRunner

from crashproof import RunReader, TrackerSettings, get_recovery_checkpoint
from crashproof.checkpoints.verify import is_damaged, problem_with
from crashproof.cli.app import app
from crashproof.rules.retention import KeepLatest
from crashproof.testing import forget_open_runs
from crashproof.tracking.adopt import adopt_checkpoints

runner = CliRunner()

LARGE = TrackerSettings(has_heartbeat=False, large_checkpoint_bytes=1)
"""Digests are computed in the background."""


def crashproof(*arguments: str) -> tuple[int, str]:
    result = runner.invoke(app, list(arguments), catch_exceptions=False)
    return result.exit_code, result.output


def put(name: str, content: bytes = b"content") -> Callable[[Path], object]:
    def add(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return add


def put_a_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        # The path of a socket is short: it is made where the name is.
        here = os.getcwd()
        os.chdir(folder)
        try:
            made.bind("worker.sock")
        finally:
            os.chdir(here)


ADDED = [
    pytest.param(put(".ipynb_checkpoints/config-checkpoint.json"), id="a notebook's copies"),
    pytest.param(put(".DS_Store"), id="Finder"),
    pytest.param(put("Thumbs.db"), id="Explorer"),
    pytest.param(put("._model.safetensors"), id="macOS on a share"),
    pytest.param(put("__pycache__/modeling.cpython-311.pyc"), id="Python"),
    pytest.param(put(".nfs000000000012"), id="NFS"),
    pytest.param(put("eval_results.json", b"{}"), id="results"),
    pytest.param(put("eval/torn.json", b"{"), id="results that are being written"),
    pytest.param(put("eval/mmlu/results.json"), id="results in folders"),
    pytest.param(put("README.md"), id="a README"),
    pytest.param(
        lambda folder: write_safetensors(folder / "Model.safetensors"), id="a recorded name in another case"
    ),
    pytest.param(put("pytorch_model.bin"), id="a conversion"),
    pytest.param(lambda folder: os.mkfifo(folder / "pipe"), id="a pipe"),
    pytest.param(put_a_socket, id="a socket"),
    pytest.param(lambda folder: (folder / "gone").symlink_to("nowhere"), id="a link to nothing"),
    pytest.param(lambda folder: (folder / "up").symlink_to(".."), id="a link to the folder above"),
    pytest.param(lambda folder: (folder / "all").symlink_to("/"), id="a link to everything"),
    pytest.param(lambda folder: (folder / "empty").mkdir(), id="an empty folder"),
]


@pytest.fixture
def saved(run_dir: Path, open_tracker: Callable[..., Any], update: Callable[..., None]) -> Callable[..., Any]:
    """A run with folders of a Trainer, recorded at the given steps; returns its tracker."""

    def save(*steps: int, settings: TrackerSettings | None = None) -> Any:
        tracker = open_tracker(total_steps=100, **({} if settings is None else {"settings": settings}))
        for step in steps:
            update(tracker, step)
            tracker.record_checkpoint(step, write_hugging_face(run_dir, step), 8 * step)
        return tracker

    return save


@pytest.mark.parametrize("add", ADDED)
@pytest.mark.parametrize("settings", [None, LARGE], ids=["digested at once", "digested in the background"])
def test_a_checkpoint_with_added_files_is_intact_offered_and_stays_where_it_is(
    run_dir: Path,
    saved: Callable[..., Any],
    open_tracker: Callable[..., Any],
    add: Callable[[Path], Any],
    settings: TrackerSettings | None,
) -> None:
    saved(10, settings=settings).close()
    add(run_dir / "checkpoint-10")
    again = open_tracker(total_steps=100)

    assert str(run_dir / "checkpoint-10") == again.get_recovery_checkpoint().checkpoint_path
    assert (run_dir / "checkpoint-10", 80) == get_recovery_checkpoint(run_dir)
    assert not (run_dir / "progress" / "set_aside").exists()


def test_no_command_calls_a_checkpoint_damaged_for_what_was_added(run_dir: Path, saved: Callable[..., Any]) -> None:
    saved(10).close()
    for each in ADDED:
        each.values[0](run_dir / "checkpoint-10")

    for command in (("verify",), ("repair",), ("checkpoints", "--verify"), ("checkpoints",), ("status",)):
        code, output = crashproof(*command, str(run_dir))
        assert ("status" in command or code == 0, "damaged" in output) == (True, False), output
    assert (run_dir / "checkpoint-10" / "model.safetensors").exists()


@pytest.mark.parametrize("add", ADDED)
def test_a_file_added_while_the_digest_is_computed_does_not_cost_the_digest(
    run_dir: Path, saved: Callable[..., Any], add: Callable[[Path], Any]
) -> None:
    tracker = saved(settings=LARGE)
    folder = write_hugging_face(run_dir, 10)
    tracker.record_checkpoint(10, folder, 80)
    add(folder)
    tracker.close()
    session = RunReader.open(run_dir).session()

    assert session.checkpoints[10].is_verifiable
    assert None is problem_with(session.checkpoints[10], RunReader.open(run_dir).folder)


def test_what_was_added_is_named_once_where_it_is_resumed_and_by_verify(
    run_dir: Path,
    saved: Callable[..., Any],
    open_tracker: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    saved(10).close()
    put("eval/results.json")(run_dir / "checkpoint-10")
    put(".DS_Store")(run_dir / "checkpoint-10")
    open_tracker(total_steps=100).get_recovery_checkpoint()

    assert 1 == caplog.text.count("eval/results.json")
    assert (
        "added since it was recorded, no part of it: .DS_Store, eval/results.json"
        in crashproof("verify", str(run_dir))[1]
    )


@pytest.mark.parametrize(
    ("recorded", "added", "effect"),
    [
        (("pytorch_model.bin",), "model.safetensors", "instead of pytorch_model.bin"),
        (("model.safetensors.index.json",), "model.safetensors", "instead of model.safetensors.index.json"),
        (("adapter_model.bin",), "adapter_model.safetensors", "instead of adapter_model.bin"),
        (("adapter_model.safetensors",), "model.safetensors", "instead of adapter_model.safetensors"),
        (("model.safetensors",), "optimizer.pt", "beside what was saved"),
        (("model.safetensors",), "pytorch_model_fsdp_0/.metadata", "beside what was saved"),
    ],
)
def test_an_added_file_that_the_framework_would_load_is_warned_of(
    run_dir: Path,
    open_tracker: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    recorded: tuple[str, ...],
    added: str,
    effect: str,
) -> None:
    tracker = open_tracker()
    for name in recorded:
        put(name)(run_dir / "checkpoint-10")
    tracker.record_checkpoint(10, run_dir / "checkpoint-10", 80)
    put(added)(run_dir / "checkpoint-10")
    tracker.get_recovery_checkpoint()

    assert 1 == caplog.text.count(f"{added} was added after it was recorded, and a framework loads it {effect}.")


def test_a_conversion_that_the_framework_does_not_prefer_is_no_warning(
    run_dir: Path, open_tracker: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker()
    put("model.safetensors")(run_dir / "checkpoint-10")
    tracker.record_checkpoint(10, run_dir / "checkpoint-10", 80)
    put("pytorch_model.bin")(run_dir / "checkpoint-10")
    tracker.get_recovery_checkpoint()

    assert "a framework loads it" not in caplog.text
    assert 1 == caplog.text.count("pytorch_model.bin")


@pytest.mark.parametrize("settings", [None, LARGE], ids=["digested at once", "digested in the background"])
@pytest.mark.parametrize(
    "name", [".DS_Store", ".ipynb_checkpoints/notes.txt", "Thumbs.db", ".nfs0001", "__pycache__/x.pyc", "._model"]
)
def test_litter_that_lay_there_at_the_save_may_change_and_go(
    run_dir: Path, open_tracker: Callable[..., Any], name: str, settings: TrackerSettings | None
) -> None:
    tracker = open_tracker(**({} if settings is None else {"settings": settings}))
    folder = write_hugging_face(run_dir, 10)
    put(name)(folder)
    tracker.record_checkpoint(10, folder, 80)
    tracker.close()
    reader = RunReader.open(run_dir)
    put(name, b"other content")(folder)
    changed = problem_with(reader.session().checkpoints[10], reader.folder)
    (folder / name).unlink()

    assert None is changed
    assert None is problem_with(reader.session().checkpoints[10], reader.folder)


@pytest.mark.parametrize("way", ["a rule", "remove_checkpoint"])
def test_an_old_checkpoint_is_deleted_and_the_files_of_the_user_in_it_are_not(
    run_dir: Path, open_tracker: Callable[..., Any], update: Callable[..., None], way: str
) -> None:
    keep = KeepLatest(1) if way == "a rule" else None
    tracker = open_tracker(total_steps=100, settings=TrackerSettings(has_heartbeat=False, keep=keep))
    update(tracker, 10)
    tracker.record_checkpoint(10, write_hugging_face(run_dir, 10), 80)
    put("eval/results.json", b"mine")(run_dir / "checkpoint-10")
    put(".DS_Store")(run_dir / "checkpoint-10")
    update(tracker, 20)
    tracker.record_checkpoint(20, write_hugging_face(run_dir, 20), 160)
    if way == "remove_checkpoint":
        assert tracker.remove_checkpoint(run_dir / "checkpoint-10")

    assert not (run_dir / "checkpoint-10").exists()
    kept = run_dir / "progress" / "set_aside" / "checkpoint-10.added"
    assert ["eval/results.json"] == [str(each.relative_to(kept)) for each in kept.rglob("*") if each.is_file()]
    assert b"mine" == (kept / "eval" / "results.json").read_bytes()
    assert [20] == list(tracker.session.checkpoints)
    tracker.close()
    assert [] == RunReader.open(run_dir).problems()


def test_a_checkpoint_whose_added_files_cannot_be_moved_is_kept(
    run_dir: Path, saved: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = saved(10, 20)
    put("notes.md")(run_dir / "checkpoint-10")
    (tmp_path / "elsewhere").mkdir()
    (run_dir / "progress" / "set_aside").symlink_to(tmp_path / "elsewhere")

    assert not tracker.remove_checkpoint(run_dir / "checkpoint-10")
    assert (run_dir / "checkpoint-10" / "notes.md").exists()
    assert [10, 20] == list(tracker.session.checkpoints)
    assert "it holds files that were added to it (notes.md)" in caplog.text


def test_a_checkpoint_that_may_not_be_read_is_passed_over_and_not_quarantined(
    run_dir: Path, saved: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(10).close()
    opened = os.open

    def forbid(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("optimizer.pt"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", forbid)
    reader = RunReader.open(run_dir)
    checkpoint = reader.session().checkpoints[10]

    assert "optimizer.pt in it cannot be read (Permission denied)" == problem_with(checkpoint, reader.folder)
    assert not is_damaged(checkpoint, reader.folder)


def test_changed_permissions_of_an_intact_checkpoint_do_not_matter(run_dir: Path, saved: Callable[..., Any]) -> None:
    saved(10).close()
    for path in (run_dir / "checkpoint-10").iterdir():
        path.chmod(0o444)

    assert (run_dir / "checkpoint-10", 80) == get_recovery_checkpoint(run_dir)


def test_an_altered_file_is_still_damage_whatever_was_added(run_dir: Path, saved: Callable[..., Any]) -> None:
    saved(10, 20).close()
    put("notes.md")(run_dir / "checkpoint-20")
    write_safetensors(run_dir / "checkpoint-20" / "model.safetensors", num_bytes=128)
    (run_dir / "checkpoint-10" / "scheduler.pt").unlink()
    code, output = crashproof("verify", str(run_dir))

    assert 1 == code
    assert "scheduler.pt is missing in it" in output
    assert "the bytes of model.safetensors differ from those that were saved (added since" in output


def test_an_archived_session_takes_the_added_files_along(
    run_dir: Path, saved: Callable[..., Any], open_tracker: Callable[..., Any]
) -> None:
    tracker = saved(10)
    name = tracker.session.session_id
    tracker.close()
    put("notes.md")(run_dir / "checkpoint-10")
    open_tracker({"lr": 0.5}).close()

    archived = run_dir / "progress" / "archive" / name / "checkpoints" / "checkpoint-10"
    assert (archived / "notes.md").exists()


@pytest.mark.parametrize("add", ADDED)
def test_a_checkpoint_of_other_code_is_adopted_with_whatever_lies_in_it(
    run_dir: Path, add: Callable[[Path], Any]
) -> None:
    add(write_hugging_face(run_dir, 500))
    # A link that lies there when a checkpoint is recorded is followed: a loader would follow it.
    (run_dir / "checkpoint-500" / "all").unlink(missing_ok=True)
    adoption = adopt_checkpoints(run_dir)
    forget_open_runs()

    assert ([500], []) == ([each.checkpoint_step for each in adoption.adopted], adoption.torn)
