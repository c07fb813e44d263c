from __future__ import annotations

import json
import os
import time

import pytest
from rich.cells import cell_len

from crashproof.disk.run_folder import RunFolder
from crashproof.records.lines.checksummed_line import add_checksum
from crashproof.records.lines.codec import encode
from crashproof.testing import FakeClock


def test_all_runs_below_a_folder_are_listed_the_newest_first(crashproof, train, tmp_path):
    train(tmp_path / "old", range(1, 11), total_steps=10, clock=FakeClock(time.time() - 7200))
    train(tmp_path / "deep" / "er" / "new", range(1, 4), clock=FakeClock(time.time() - 60))

    said = crashproof("runs", tmp_path)

    assert 0 == said.code
    assert ["run", "deep/er/new", "old"] == [line.split()[0] for line in said.lines]
    assert "ended early" in said.lines[1]
    assert "10/10" in said.lines[2]


def test_the_table_fits_80_columns_and_cut_names_keep_their_ends(crashproof, train, tmp_path):
    train(tmp_path / ("a" * 90 + "_end"), range(1, 4))

    said = crashproof("runs", tmp_path)

    assert max(map(cell_len, said.lines)) <= 80
    assert "_end" in said.lines[1]
    assert "\x1b" not in said.output


def test_json_has_the_summary_of_each(crashproof, train, tmp_path):
    train(tmp_path / "one", range(1, 4), losses={3: float("nan")})

    answer = json.loads(crashproof("runs", tmp_path, "--json").output)

    assert [("one", None, 3)] == [(e["name"], e["error"], e["steps_completed"]) for e in answer["runs"]]
    assert "NaN" == answer["nonfinite"]["runs.0.loss_trend.current_loss"]


def test_a_run_of_a_newer_version_is_a_row_that_says_why(crashproof, train, tmp_path):
    train(tmp_path / "whole", range(1, 4))
    newer = train(tmp_path / "newer", range(1, 4))
    with RunFolder.under(newer).metrics.open("ab") as file:
        file.write(encode({"v": 2, "step": 4}))

    said = crashproof("runs", tmp_path)

    assert 0 == said.code
    assert "whole" in said.output
    assert [line for line in said.lines if line.startswith("newer: cannot be read:") and "version 2" in line]


def test_damage_is_marked(crashproof, train, tmp_path):
    metrics = RunFolder.under(train(tmp_path / "one", range(1, 9))).metrics
    (RunFolder.under(tmp_path / "one").session).unlink()
    metrics.write_bytes(metrics.read_bytes().replace(b'"step":3', b'"step":5'))

    assert "ended early!" in crashproof("runs", tmp_path).output


def test_a_last_line_under_way_is_no_damage(crashproof, open_tracker, update, tmp_path):
    update(open_tracker(output_dir=tmp_path / "one"), 1)
    with RunFolder.under(tmp_path / "one").metrics.open("ab") as file:
        file.write(b'{"v":1,"st')

    assert "!" not in crashproof("runs", tmp_path).output


def test_a_folder_without_runs_says_so(crashproof, tmp_path):
    assert (0, f"No runs found under {tmp_path}.\n") == (lambda said: (said.code, said.output))(
        crashproof("runs", tmp_path)
    )


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_is_no_folder_is_an_error(crashproof, tmp_path, name):
    (tmp_path / "file").write_text("")

    said = crashproof("runs", tmp_path / name)

    assert (2, 1) == (said.code, said.errors.count("\n"))


def test_a_folder_that_is_a_run_is_its_own_row(crashproof, train, tmp_path):
    assert "\n.  " in crashproof("runs", train(tmp_path / "one", range(1, 3))).output


def hostile(train, root):
    """Runs whose files are what no program has written, by what is said of each."""

    def replaced(name: str, file: str):
        path = RunFolder.under(train(root / name, range(1, 4))).progress / file
        path.unlink()
        (path.parent / "session.json").unlink(missing_ok=True)
        return path

    os.mkfifo(replaced("pipe", "metrics.jsonl"))
    os.mkfifo(replaced("pipe of events", "events.jsonl"))
    os.mkfifo(replaced("pipe of a snapshot", "session.json"))
    os.mkfifo(replaced("pipe of a lock", "writer.lock"))
    replaced("device", "metrics.jsonl").symlink_to("/dev/zero")
    replaced("folder", "metrics.jsonl").mkdir()
    with replaced("sparse", "metrics.jsonl").open("wb") as file:
        file.truncate(1 << 40)
    with replaced("sparse snapshot", "session.json").open("wb") as file:
        file.truncate(1 << 40)
    deep = b'{"event":"session_started","v":1,"config":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001
    replaced("deep", "events.jsonl").write_bytes(add_checksum(deep))
    inside = b'{"a":' * 398 + b"1" + b"}" * 398
    replaced("nearly too deep", "events.jsonl").write_bytes(
        add_checksum(
            b'{"event":"session_started","timestamp":1.0,"attempt":1,"v":1,"session_id":"x","config":%b,'
            b'"config_hash":"x","total_steps":9,"api_cost_before":0}' % inside
        )
    )
    replaced("deep behind texts", "events.jsonl").write_bytes(
        add_checksum(b'{"v":1,"a":[' + b'["]",' * 90_000 + b'"' + b"[" * 90_000 + b'"' + b"]" * 90_001 + b"}")
    )
    replaced("no json", "events.jsonl").write_bytes(add_checksum(b'{"v":1 \xff}'))
    replaced("no number", "metrics.jsonl").write_bytes(add_checksum(b'{"v":1,"step":1,"nonfinite":{"loss":"x"}}'))
    replaced("far away", "events.jsonl").write_bytes(
        add_checksum(
            b'{"event":"session_started","timestamp":1e308,"attempt":1,"v":1,"session_id":"x","config":{},'
            b'"config_hash":"x","total_steps":9223372036854775807,"api_cost_before":1e999999}'
        )
    )
    os.rename(train(root / "odd", range(1, 4)), os.fsencode(root) + b"/o\xffd\xfe")


def test_one_bad_run_takes_no_other_down(crashproof, train, tmp_path):
    train(tmp_path / "good", range(1, 4))
    hostile(train, tmp_path)

    answer = json.loads(crashproof("runs", tmp_path, "--json").output)
    said = crashproof("runs", tmp_path)

    errors = {each["name"]: each["error"] for each in answer["runs"]}
    assert 16 == len(errors)
    assert (0, 0) == (said.code, said.errors.count("Traceback"))
    assert errors["good"] is None
    assert errors["o\\udcffd\\udcfe"] is None
    assert errors["sparse"] is None
    for name, kind in (("pipe", "a named pipe"), ("device", "a device"), ("folder", "a folder")):
        assert f"it is {kind}, not a regular file" in errors[name]
    assert not [each for each in errors.values() if each and "Error:" in each]


@pytest.mark.parametrize(
    "command", ["status", "verify", "doctor", "history", "checkpoints", "export", "repair", "watch"]
)
def test_every_command_ends_in_words_on_a_bad_run(crashproof, train, tmp_path, monkeypatch, command):
    hostile(train, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)

    for run in sorted((tmp_path / "runs").iterdir()):
        more = {"watch": ["--once"], "export": ["--to", "csv", "--into", "x.csv"]}.get(command, [])
        said = crashproof(command, run, *more)

        assert "Traceback" not in said.output + said.errors, run
        assert said.code in range(8), run
