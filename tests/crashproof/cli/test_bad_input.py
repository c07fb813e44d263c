from __future__ import annotations

import json
import os
import re
import time

import pytest

from crashproof.disk.run_folder import RunFolder
from crashproof.records.lines.codec import encode
from crashproof.testing import FakeClock

LOOKING = {
    "status": ["status"],
    "watch": ["watch", "--once"],
    "watch-lines": ["watch"],
    "history": ["history"],
    "history-backwards": ["history", "--last", "5"],
    "checkpoints": ["checkpoints", "--verify"],
    "verify": ["verify"],
    "stop": ["stop"],
}
"""Commands that take one run and only look, or have nothing to do on one that nobody writes."""

OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""All that a terminal obeys instead of showing it, save the end of a line."""

EVIL = "evil\x1b[2J\x1b]0;owned\x07\x9b31m\u202egpj"


def every_command(crashproof, run, tmp_path):
    for name, command in LOOKING.items():
        yield name, crashproof(*command, run)
    yield "compare", crashproof("compare", run, run)
    yield "doctor", crashproof("doctor", run, "--out", tmp_path / "found.html")
    yield "runs", crashproof("runs", run.parent)


def every_json(crashproof, run):
    for name, command in LOOKING.items():
        yield name, crashproof(*command, run, "--json")
    yield "compare", crashproof("compare", run, run, "--json")
    yield "doctor", crashproof("doctor", run, "--json")
    yield "runs", crashproof("runs", run.parent, "--json")


@pytest.mark.parametrize("command", [*LOOKING.values(), ["doctor"], ["repair"]], ids=" ".join)
@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_what_is_no_run_is_one_line_and_exit_code_2(crashproof, tmp_path, command, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")

    said = crashproof(*command, tmp_path / name)

    assert (2, "", 1) == (said.code, said.output, said.errors.count("\n"))
    assert said.errors.startswith(f"crashproof: {tmp_path / name} holds no run")


@pytest.mark.parametrize("command", [*LOOKING.values(), ["doctor"], ["repair"]], ids=" ".join)
def test_a_run_of_a_newer_version_is_refused_and_not_touched(
    crashproof, train, run_dir, command, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.under(train(run_dir, range(1, 4)))
    with folder.metrics.open("ab") as file:
        file.write(encode({"v": 99, "step": 4}))
    before = folder.metrics.read_bytes()

    said = crashproof(*command, run_dir)

    assert (2, 1) == (said.code, said.errors.count("\n"))
    assert "has format version 99" in said.errors
    assert before == folder.metrics.read_bytes()


def test_compare_needs_two_whole_runs(crashproof, train, run_dir, tmp_path):
    train(run_dir, range(1, 4))

    assert [(2, 1)] * 2 == [
        (said.code, said.errors.count("\n"))
        for said in (crashproof("compare", run_dir), crashproof("compare", run_dir, tmp_path / "missing"))
    ]


def test_a_killed_run_is_looked_at_by_all(
    crashproof, open_tracker, update, save_checkpoint, left_by_a_kill, tmp_path
):
    run_dir = tmp_path / "run"
    tracker = open_tracker()
    for step in range(1, 30):
        update(tracker, step)
    save_checkpoint(tracker, 29)
    killed = left_by_a_kill(run_dir)

    said = dict(every_command(crashproof, killed, tmp_path))

    assert [] == [name for name, each in said.items() if each.errors]
    assert (5, 5, 5) == (said["status"].code, said["watch"].code, said["watch-lines"].code)
    assert "no process writes" in said["stop"].output.lower()
    assert "checkpoint_29.pt" in said["checkpoints"].output


def test_a_run_half_written_is_looked_at_by_all(crashproof, open_tracker, run_dir, left_by_a_kill, tmp_path):
    open_tracker()
    half = left_by_a_kill(run_dir)
    folder = RunFolder.under(half)
    folder.metrics.unlink(missing_ok=True)
    for path in (folder.session, folder.summary, folder.manifest):
        path.unlink(missing_ok=True)
    events = folder.events.read_bytes()
    folder.events.write_bytes(events[:-20])

    for name, said in every_command(crashproof, half, tmp_path):
        assert "" == said.errors, name
        assert said.code in (0, 1, 5, 7), name


def test_a_folder_with_nothing_but_a_torn_line_is_no_run_yet(crashproof, run_dir):
    folder = RunFolder.under(run_dir)
    folder.progress.mkdir(parents=True)
    folder.events.write_bytes(b'{"event":"session_sta')

    said = crashproof("status", run_dir)

    assert (2, 1) == (said.code, said.errors.count("\n"))


def test_a_damaged_journal_is_looked_at_by_all(crashproof, train, run_dir, tmp_path):
    folder = RunFolder.under(train(run_dir, range(1, 40)))
    for path in (folder.session, folder.curves):
        path.unlink(missing_ok=True)
    lines = folder.metrics.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b'"step":5', b'"step":4')
    lines[9] = b"\x00\xff" * 40 + b"\n"
    folder.metrics.write_bytes(b"".join(lines) + b'{"v":1,"at')

    said = dict(every_command(crashproof, run_dir, tmp_path))

    assert [] == [name for name, each in said.items() if each.errors]
    assert 1 == said["verify"].code
    assert 1 + 37 == len(said["history"].lines)
    assert "step 39 of 100" in said["status"].output


@pytest.mark.parametrize("jump", [-7200.0, -1e9, 7200.0])
def test_a_clock_that_jumped_disturbs_nobody(crashproof, open_tracker, update, run_dir, tmp_path, jump):
    clock = FakeClock(time.time())
    tracker = open_tracker(clock=clock)
    for step in range(1, 20):
        clock.advance(1)
        if step == 10:
            clock.jump(jump)
        update(tracker, step)
    tracker.close()

    for name, said in every_command(crashproof, run_dir, tmp_path):
        assert "" == said.errors, name
        assert "Traceback" not in said.output, name


def test_no_text_of_a_run_reaches_the_terminal_as_a_command(crashproof, open_tracker, update, tmp_path):
    run = tmp_path / EVIL
    config = {EVIL: EVIL, "train": {"note": EVIL}}
    tracker = open_tracker(config, output_dir=run)
    for step in range(1, 10):
        update(tracker, step, loss_components={EVIL: 1.0})
    path = run / f"checkpoint{EVIL}.pt"
    path.write_bytes(b"weights")
    tracker.record_checkpoint(9, path, 9, recovery_tags=[EVIL])
    tracker.record_evaluation(9, {EVIL: 1.0})
    tracker.record_connection_failure(2, EVIL)
    tracker.close("raised", ValueError(EVIL))
    path.write_bytes(b"weightz")

    found = [
        (name, OBEYED.findall(said.output + said.errors))
        for said_all in (every_command(crashproof, run, tmp_path), every_json(crashproof, run))
        for name, said in said_all
    ]

    assert [] == [(name, obeyed) for name, obeyed in found if obeyed]
    assert "\\x1b[2J" in crashproof("status", run).output


def test_errors_show_hostile_names_spelled_out(crashproof, tmp_path):
    said = crashproof("status", tmp_path / EVIL)

    assert [] == OBEYED.findall(said.errors.rstrip("\n"))
    assert "\\x1b[2J" in said.errors


def test_json_of_hostile_names_is_json(crashproof, open_tracker, update, tmp_path):
    run = tmp_path / "run"
    tracker = open_tracker({EVIL: "\udcff"}, output_dir=run)
    update(tracker, 1, loss_components={EVIL: 1.0})
    tracker.close()

    assert {EVIL: 1.0} == json.loads(crashproof("history", run, "--json").output)["loss_components"]
    assert {EVIL: 1.0} == json.loads(crashproof("status", run, "--json").output)["loss_components"]


def test_a_folder_that_may_not_be_read_is_one_line(crashproof, train, run_dir, monkeypatch):
    train(run_dir, range(1, 4))

    really_open = os.open

    def refuse(path: object, *rest: object, **more: object) -> int:
        if str(path).endswith(".jsonl"):
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)

    said = crashproof("status", run_dir)

    assert (2, 1) == (said.code, said.errors.count("\n"))
    assert "Permission denied" in said.errors
