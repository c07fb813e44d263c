from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crashproof import RunReader
from crashproof.cli.app import app
from crashproof.cli.doctor import _about_memory
from crashproof.records.lines.codec import encode
from crashproof.views.post_mortem import Surroundings, examine
from crashproof.views.post_mortem_page import post_mortem_page

SECRET = "sk-abcdefghij0123456789"
AROUND = Surroundings(host="node7", free_bytes=10**12, disk_bytes=2 * 10**12, log_name=None)


class Seen(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def doctored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def look(run: Path, *arguments: str) -> tuple[int, str, str]:
        answer = CliRunner().invoke(app, ["doctor", str(run), *arguments])
        page = tmp_path / f"{run.name}-doctor.html"
        return answer.exit_code, answer.output, page.read_text() if page.exists() else ""

    return look


@pytest.fixture
def killed(open_tracker, update, save_checkpoint, left_by_a_kill, run_dir):
    """What a SIGKILL left of a run with two checkpoints, the newer one damaged."""
    tracker = open_tracker()
    for step in range(1, 31):
        update(tracker, step, loss=float("nan") if step == 29 else 1.0 / step)
        if step in (10, 20):
            save_checkpoint(tracker, step)
    tracker.record_connection_failure(2, f"503 from the teacher, key {SECRET}")
    run = left_by_a_kill(run_dir)
    (run / "checkpoint_20.pt").write_bytes(b"weights of stop 20")
    return run


def test_a_killed_run_is_told_from_its_end(doctored, killed):
    code, said, page = doctored(killed)
    text = Seen(page).text

    assert 0 == code
    assert "exited without recording a shutdown" in said
    assert (
        "Start the same command again: it resumes at step 10 from checkpoint_10.pt, and recomputes 20 steps." in said
    )
    assert f"Full report: {killed.name}-doctor.html" in said
    assert "It skips 1 newer checkpoint(s) that cannot be used." in text
    assert "1 of the last 30 losses are non-finite." in text
    assert "1 requests to a teacher failed." in text
    assert "checkpoint_10.pt" in text
    assert "Every line of its journals is intact." in text


def test_the_page_needs_nothing_else_and_holds_no_secret(doctored, killed):
    (killed / "train.log").write_text(f"starting\nAuthorization: Bearer {SECRET}\nstep 30 <b>loss</b> nan\n")
    _, _, page = doctored(killed)
    seen = Seen(page)

    assert not {"script", "img", "iframe", "link", "b "} & set(seen.tags)
    assert [] == re.findall(r"https?://(?!www\.w3\.org)", page)
    assert SECRET not in page
    assert "step 30 <b>loss</b> nan" in seen.text
    assert "svg" in seen.tags


def test_looking_changes_nothing_in_the_run(doctored, killed):
    before = {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}

    doctored(killed)

    assert before == {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}


def test_it_refuses_to_write_into_the_run(doctored, killed):
    answer = CliRunner().invoke(app, ["doctor", str(killed), "--out", str(killed / "post.html")])

    assert "is inside the run" in str(answer.exception)


def test_programs_are_told_in_strict_json(doctored, killed, read_json, tmp_path):
    _, said, page = doctored(killed, "--json")
    (tmp_path / "said.json").write_text(said)
    told = read_json(tmp_path / "said.json")

    assert "" == page
    assert ("crashed", 20) == (told["state"], len(told["last_updates"]))
    assert [None, True] == [
        told["checkpoints"][0]["problem"],
        told["checkpoints"][1]["problem"] is not None,
    ]


@pytest.mark.parametrize(
    "how, error, said",
    [
        ("raised", ValueError("the loss is a cow"), "ended with an exception at step 5 of 100"),
        ("preempted", None, "was asked to stop, saved, and ended at step 5 of 100"),
        ("completed", None, "closed the run before its end"),
        ("completed", ValueError("the loss is a cow"), "closed the run before its end"),
    ],
)
def test_each_end_has_its_sentence(open_tracker, update, run_dir, doctored, how, error, said):
    tracker = open_tracker()
    for step in range(1, 6):
        update(tracker, step)
    tracker.close(how, error)

    assert said in doctored(run_dir)[1]
    assert error is None or "ValueError: the loss is a cow" in doctored(run_dir)[1]


def test_a_complete_run_needs_nothing(open_tracker, update, run_dir, doctored):
    tracker = open_tracker(total_steps=5)
    for step in range(1, 6):
        update(tracker, step)
    tracker.close()

    said = doctored(run_dir)[1]

    assert "completed all steps" in said
    assert "Nothing needs to be done." in said


def test_a_live_run_is_not_called_dead(open_tracker, update, run_dir, doctored):
    update(open_tracker(), 1)

    assert "The run is still active." in doctored(run_dir)[1]


def test_a_damaged_run_is_told_with_its_damage(killed, doctored):
    metrics = killed / "progress" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b'"step":7,', b'"step":8,'))

    _, said, page = doctored(killed)

    assert "The journals have 1 damaged record(s)" in said
    assert "metrics.jsonl, byte" in Seen(page).text


def test_a_run_that_would_not_start_says_why(killed, doctored):
    (killed / "checkpoint_10.pt").unlink()
    (killed / "checkpoint_20.pt").unlink()

    assert "A restart would stop with an error." in doctored(killed)[1]


def test_the_newest_log_is_taken_or_the_one_that_is_named(killed, doctored, tmp_path):
    old, new, named = killed / "old.log", killed.with_name(f"{killed.name}.out"), tmp_path / "named.txt"
    for age, path in enumerate([named, old, new]):
        path.write_text(f"line of {path.name}\n" * 300)
        os.utime(path, (1e9 + age, 1e9 + age))

    newest = Seen(doctored(killed)[2]).text
    asked_for = Seen(doctored(killed, "--log", str(named))[2]).text

    assert 200 == newest.count(f"line of {new.name}")
    assert 200 == asked_for.count("line of named.txt")
    assert "The log nowhere does not exist" in str(
        CliRunner().invoke(app, ["doctor", str(killed), "--log", "nowhere"]).exception
    )


def test_failed_saves_are_a_clue(open_tracker, update, run_dir):
    tracker = open_tracker()
    update(tracker, 7)
    tracker.record_checkpoint_failure(7, "no quota")

    found = examine(RunReader.open(run_dir), AROUND, name="mine", now=1e9)

    assert any(each.startswith("The newest save has failed, at step 7: no quota; ") for each in found.clues)


def test_clues_of_the_machine_are_told(killed):
    around = Surroundings(
        host="node7",
        free_bytes=10**6,
        disk_bytes=10**12,
        log_name=None,
        kernel_lines=["Out of memory: Killed process 77 (python)"],
    )
    found = examine(RunReader.open(killed), around, name="mine", now=1e9)
    page = Seen(post_mortem_page(found)).text

    assert "The kernel has killed processes for lack of memory (OOM); its messages are below." in found.clues
    assert "The disk is nearly full: 1.0 MB free." in found.clues
    assert "Killed process 77" in page


def test_the_kernels_lines_about_memory_are_found():
    lines = ["[1] usb 1-1: new device", "[2] oom-kill:constraint=X", "[3] Out of memory: Killed process 7 (python)"]

    assert lines[1:] == list(_about_memory(lines))


def test_a_time_that_is_nonsense_hides_nothing(killed):
    session = RunReader.open(killed).session()
    line = session.metrics_history[-1]
    with (killed / "progress" / "metrics.jsonl").open("ab") as file:
        import msgspec

        file.write(encode(msgspec.structs.replace(line, step=31, timestamp=9e18)))

    found = examine(RunReader.open(killed), AROUND, name="mine", now=1e9)

    assert "after 1970" in Seen(post_mortem_page(found)).text


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["no-folder", "no-run"])
def test_what_is_no_run_is_said(tmp_path, make):
    make(tmp_path / "nothing")

    answer = CliRunner().invoke(app, ["doctor", str(tmp_path / "nothing")])

    assert "holds no run" in str(answer.exception)


def test_json_is_one_object(killed, doctored):
    assert isinstance(json.loads(doctored(killed, "--json")[1]), dict)
