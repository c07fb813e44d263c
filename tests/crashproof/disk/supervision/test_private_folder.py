from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crashproof.disk.run_folder import RunFolder
from crashproof.disk.supervision import private_folder
from crashproof.disk.supervision.phase_board import PhaseBoard, read_board
from crashproof.disk.supervision.private_folder import PrivateFolder
from crashproof.disk.supervision.stacks import keep_stacks, open_stacks_file
from crashproof.errors import StorageUnwritable


def test_a_folder_is_for_this_user_alone(tmp_path):
    folder = PrivateFolder.claim(tmp_path / "all", "one")

    assert 0o700 == folder.path.stat().st_mode & 0o777 == (tmp_path / "all").stat().st_mode & 0o777
    folder.release()


def test_one_that_is_held_is_left_to_its_holder(tmp_path):
    first = PrivateFolder.claim(tmp_path / "all", "one")
    second = PrivateFolder.claim(tmp_path / "all", "one")
    first.release()
    third = PrivateFolder.claim(tmp_path / "all", "one")

    assert ["one.0", "one.1", "one.0"] == [each.path.name for each in (first, second, third)]
    second.release()
    third.release()


def test_too_many_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(private_folder, "_SLOTS", 1)
    held = PrivateFolder.claim(tmp_path / "all", "one")

    with pytest.raises(StorageUnwritable, match="1 supervisors of this command"):
        PrivateFolder.claim(tmp_path / "all", "one")
    held.release()


@pytest.mark.parametrize("kind", ["open", "file", "link"])
def test_what_others_may_have_put_there_is_refused(kind, tmp_path):
    place = tmp_path / "all"
    if kind == "open":
        place.mkdir(mode=0o755)
    elif kind == "file":
        place.touch()
    else:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StorageUnwritable, match="of this user alone"):
        PrivateFolder.claim(place, "one")


def test_files_are_replaced_read_and_cleared(tmp_path):
    folder = PrivateFolder.claim(tmp_path / "all", "one")
    folder.write("a", b"1")
    folder.write("b", b"2")
    folder.clear(keep=frozenset({"b"}))

    assert (None, b"2") == (folder.read("a"), folder.read("b"))
    assert (folder.path / "lock").exists()
    folder.release()


def test_a_number_shown_is_seen_by_others_even_after_a_kill(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from crashproof.disk.supervision.phase_board import PhaseBoard\n"
        "PhaseBoard(Path(sys.argv[1])).show(7)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "board")], check=False)

    assert 7 == read_board(tmp_path / "board")


def test_without_a_board_nothing_is_shown(tmp_path):
    assert 0 == read_board(tmp_path / "board")
    PhaseBoard(tmp_path / "board")
    assert 0 == read_board(tmp_path / "board")


def test_stacks_are_kept_each_in_a_file_of_its_own(tmp_path):
    folder = RunFolder.under(tmp_path / "run")
    paths = [keep_stacks(folder, 3, text) for text in ("one", "two")]

    assert ["one", "two"] == [each.read_text() for each in paths]
    assert "progress/stacks/attempt_3.txt" == folder.recorded_path(paths[0])


def test_a_stacks_file_takes_what_a_signal_handler_writes(tmp_path):
    with open_stacks_file(tmp_path / "stacks") as file:
        os.write(file.fileno(), b"Thread 1")

    assert "Thread 1" == Path(tmp_path / "stacks").read_text()
    assert not (tmp_path / "stacks").stat().st_mode & 0o077
