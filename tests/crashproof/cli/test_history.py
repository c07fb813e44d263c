from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest

from crashproof.disk.run_folder import RunFolder


@pytest.fixture
def resumed(train, run_dir, open_tracker, update):
    """Steps 1 to 8, then 6 to 10 again; step 7 of the second time is NaN."""
    train(run_dir, range(1, 9))
    return train(run_dir, range(6, 11), losses={7: float("nan")})


def steps(said) -> list[int]:
    return [json.loads(line)["step"] for line in said.lines]


def test_each_step_stands_once_in_order(crashproof, resumed):
    said = crashproof("history", resumed, "--json")
    lines = [json.loads(line) for line in said.lines]

    assert list(range(1, 11)) == [line["step"] for line in lines]
    assert [1] * 5 + [2] * 5 == [line["attempt"] for line in lines]


def test_what_json_cannot_hold_is_null_with_its_name(crashproof, resumed):
    line = json.loads(crashproof("history", resumed, "--json", "--from", "7", "--to", "7").output)

    assert (None, {"loss": "NaN"}) == (line["loss"], line["nonfinite"])


@pytest.mark.parametrize(
    "options, expected",
    [
        pytest.param(["--from", "9"], [9, 10], id="from"),
        pytest.param(["--to", "2"], [1, 2], id="to"),
        pytest.param(["--every", "4"], [1, 5, 9], id="every"),
        pytest.param(["--last", "3"], [8, 9, 10], id="last"),
        pytest.param(["--last", "100"], list(range(1, 11)), id="more-than-there-are"),
        pytest.param(["--last", "2", "--to", "5"], [4, 5], id="last-before"),
        pytest.param(["--last", "9", "--from", "5"], [5, 6, 7, 8, 9, 10], id="last-from"),
        pytest.param(["--last", "3", "--every", "3"], [4, 7, 10], id="last-apart"),
        pytest.param(["--last", "5", "--all"], [6, 7, 8, 9, 10], id="last-of-all"),
    ],
)
def test_parts_of_it(crashproof, resumed, options, expected):
    assert expected == steps(crashproof("history", resumed, "--json", *options))


def test_all_shows_what_was_computed_again_and_marks_it(crashproof, resumed):
    forwards = [json.loads(line) for line in crashproof("history", resumed, "--json", "--all").lines]
    backwards = [json.loads(line) for line in crashproof("history", resumed, "--json", "--all", "--last", "99").lines]

    assert [6, 7, 8] == [line["step"] for line in forwards if line["is_superseded"]]
    assert 13 == len(forwards)
    assert forwards == backwards
    assert 3 == crashproof("history", resumed, "--all").output.count("superseded")


def test_a_table_for_people(crashproof, resumed):
    said = crashproof("history", resumed)

    assert ["step", "attempt", "time", "loss", "rate", "kd", "ce"] == said.lines[0].split()
    assert 11 == len(said.lines)
    assert max(map(len, said.lines)) <= 80
    assert "nan" in said.lines[7]


def test_csv_has_a_column_for_every_component(crashproof, open_tracker, update, run_dir):
    tracker = open_tracker()
    update(tracker, 1, loss_components={"a": 1.0})
    update(tracker, 2, loss=float("inf"), loss_components={"b,=1": 2.0})
    tracker.close()

    rows = list(csv.DictReader(crashproof("history", run_dir, "--csv").lines))
    newest = list(csv.DictReader(crashproof("history", run_dir, "--csv", "--last", "1", "--all").lines))

    assert [("1", "1.0", ""), ("2", "", "2.0")] == [
        (row["step"], row["loss_components.a"], row["loss_components.b,=1"]) for row in rows
    ]
    assert "Infinity" == rows[1]["loss"]
    assert [("2", "false")] == [(row["step"], row["is_superseded"]) for row in newest]


def test_a_run_without_updates(crashproof, open_tracker, run_dir):
    open_tracker().close()

    assert "No updates.\n" == crashproof("history", run_dir).output
    assert "" == crashproof("history", run_dir, "--json", "--last", "3").output
    RunFolder.under(run_dir).metrics.unlink()
    assert "" == crashproof("history", run_dir, "--json", "--last", "3").output


def test_two_formats_at_once_are_refused(crashproof, resumed):
    said = crashproof("history", resumed, "--json", "--csv")

    assert (2, 1) == (said.code, said.errors.count("\n"))


def test_a_reader_that_goes_away_ends_it_quietly(train, run_dir):
    train(run_dir, range(1, 3000), total_steps=3000)
    program = "from crashproof.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "history", str(run_dir), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None

    first = process.stdout.readline()
    process.stdout.close()

    assert 1 == json.loads(first)["step"]
    assert b"" == process.stderr.read()
    process.wait()
    process.stderr.close()
