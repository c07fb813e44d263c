"""Damaged bytes in a journal are quarantined, and every intact line around them is kept."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from crash.workload import SETTINGS, update

from crashproof import ProgressTracker, RunReader
from crashproof.records.events import DamageFound

STEPS = list(range(1, 13))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Twelve synced steps and two answers, and no session snapshot: the journals are read from the start."""
    tracker = ProgressTracker(tmp_path / "progress", {"lr": 1}, 100, settings=SETTINGS)
    for step in STEPS:
        update(tracker, step)
    tracker.record_api_response("first", {"text": "one"}, 0.5)
    tracker.record_api_response("second", {"text": "two"}, 0.5)
    tracker.close()
    tracker.session_file.unlink()
    return tmp_path


def reopened_steps(run: Path) -> list[int]:
    tracker = ProgressTracker(run / "progress", {"lr": 1}, 100, settings=SETTINGS)
    tracker.close()
    assert [] == RunReader.open(run).problems()
    return [line.step for line in RunReader.open(run).history()]


def quarantined(run: Path, name: str = "metrics.jsonl") -> bytes:
    return (run / "progress" / "set_aside" / name).read_bytes()


def lines_of(run: Path) -> list[bytes]:
    return (run / "progress" / "metrics.jsonl").read_bytes().splitlines(keepends=True)


def write_lines(run: Path, content: bytes) -> None:
    (run / "progress" / "metrics.jsonl").write_bytes(content)


def test_a_last_line_truncated_at_any_byte_is_quarantined_and_the_rest_is_kept(run: Path) -> None:
    lines = lines_of(run)
    for length in range(1, len(lines[-1]) - 1):
        write_lines(run, b"".join(lines[:-1]) + lines[-1][:length])

        assert STEPS[:-1] == reopened_steps(run)
    assert quarantined(run).endswith(lines[-1][:-2] + b"\n")


def test_a_last_line_that_lost_only_its_newline_is_kept(run: Path) -> None:
    write_lines(run, b"".join(lines_of(run))[:-1])

    assert STEPS == reopened_steps(run)


@pytest.mark.parametrize(
    "tail",
    [b"\0" * 100, b"not json\n", b'{"v":1}\n', b"\xff\xfe\n\n"],
    ids=["zeros", "text", "no checksum", "binary"],
)
def test_a_garbage_tail_is_quarantined(run: Path, tail: bytes) -> None:
    write_lines(run, b"".join(lines_of(run)) + tail)

    assert STEPS == reopened_steps(run)
    assert tail.strip(b"\n") in quarantined(run)
    assert any(isinstance(event, DamageFound) for event in RunReader.open(run).events())


def test_one_flipped_bit_anywhere_in_a_line_costs_that_line_alone(run: Path) -> None:
    lines = lines_of(run)
    chance = random.Random(7)
    for _ in range(40):
        place = chance.randrange(len(lines[5]) - 1)
        corrupt = bytearray(lines[5])
        corrupt[place] ^= 1 << chance.randrange(8)
        write_lines(run, b"".join([*lines[:5], bytes(corrupt), *lines[6:]]))

        assert [step for step in STEPS if step != 6] == reopened_steps(run)


def test_a_line_appended_to_a_torn_one_is_kept(run: Path) -> None:
    lines = lines_of(run)
    write_lines(run, b"".join([*lines[:5], lines[5][:40], *lines[6:]]))

    assert [step for step in STEPS if step != 6] == reopened_steps(run)


def test_two_lines_joined_by_a_corrupt_newline_are_both_kept(run: Path) -> None:
    lines = lines_of(run)
    write_lines(run, b"".join([*lines[:5], lines[5].rstrip(b"\n") + b"\x8a", *lines[6:]]))

    assert STEPS == reopened_steps(run)


def test_a_corrupt_answer_is_not_served_and_its_neighbour_is(run: Path) -> None:
    path = run / "progress" / "api_recovery.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"one"', b'"0ne"'))

    tracker = ProgressTracker(run / "progress", {"lr": 1}, 100, settings=SETTINGS)

    assert None is tracker.get_api_response("first")
    assert {"text": "two"} == tracker.get_api_response("second")
    assert b'"0ne"' in quarantined(run, "api_recovery.jsonl")
    tracker.close()


def test_a_session_continues_although_its_first_event_is_lost(run: Path) -> None:
    events = run / "progress" / "events.jsonl"
    first, *rest = events.read_bytes().splitlines(keepends=True)
    events.write_bytes(first.replace(b"session_started", b"session_st@rted") + b"".join(rest))

    assert STEPS == reopened_steps(run)
