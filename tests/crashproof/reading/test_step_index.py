from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import pytest

from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NewerFormat
from crashproof.reading.run_reader import RunReader
from crashproof.reading.step_index import StepIndex, WantedSteps
from crashproof.records.lines.checksummed_line import add_checksum
from crashproof.records.metrics import MetricsSnapshot
from crashproof.rules.history import Rewinds, merged_parts


@pytest.fixture
def train(open_tracker, update, run_dir):
    """Report steps in one attempt after the other; of each step that `in_parts` names, two parts."""

    def report(*attempts: range, in_parts: int = 0) -> None:
        for steps in attempts:
            tracker = open_tracker(total_steps=10_000)
            for step in steps:
                update(tracker, step, loss=random.Random(step).gauss(2.0, 0.1), loss_components={"d": 1.0})
                if in_parts and step % in_parts == 0:
                    update(tracker, step, loss=0.5, loss_components={"g": 2.0})
            tracker.close()

    return report


def by_reading_all(run: Path, wanted: WantedSteps) -> list[tuple[MetricsSnapshot, bool]]:
    """The same by the rules alone."""
    reader = RunReader.open(run)
    rewinds = Rewinds()
    for update in reader.all_updates():
        rewinds.feed(update.step, update.attempt)
    canonical = rewinds.canonical()
    lines = ((not canonical.stands(each.step), each) for each in reader.all_updates())
    rows, shown = [], None
    for is_superseded, update in merged_parts(lines):
        is_between = (wanted.first or 0) <= update.step <= (10_000 if wanted.last is None else wanted.last)
        is_apart = shown is None or abs(update.step - shown) >= wanted.apart
        if is_between and is_apart and (wanted.has_superseded or not is_superseded):
            rows.append((update, is_superseded))
            shown = update.step
    return rows


def found(run: Path, wanted: WantedSteps) -> list[tuple[MetricsSnapshot, bool]]:
    return [(each.update, each.is_superseded) for each in StepIndex(RunFolder.under(run)).updates(wanted)]


def require_the_same(run: Path) -> None:
    """Whatever is wanted, the index finds what reading all lines finds."""
    for apart, first, last, is_all in product((1, 7, 300), (None, 450), (None, 690), (False, True)):
        wanted = WantedSteps(first=first, last=last, apart=apart, has_superseded=is_all)
        assert by_reading_all(run, wanted) == found(run, wanted), wanted


@pytest.mark.parametrize(
    "attempts",
    [
        pytest.param([range(50)], id="no-block"),
        pytest.param([range(1, 1000)], id="blocks"),
        pytest.param([range(1, 700), range(501, 900)], id="one-resume"),
        pytest.param([range(1, 700), range(1, 300)], id="from-the-beginning"),
        pytest.param([range(1, 900), range(301, 700), range(601, 650), range(101, 1200)], id="many"),
        pytest.param([range(1, 600), range(600, 1300)], id="nothing-repeated"),
        pytest.param([range(3, 9000, 13), range(5, 4000, 11)], id="steps-left-out"),
    ],
)
def test_what_is_found_is_what_reading_all_lines_finds(train, run_dir, attempts):
    train(*attempts)

    require_the_same(run_dir)


def test_an_update_has_all_its_parts(train, run_dir):
    train(range(1, 700), range(513, 800), in_parts=3)

    require_the_same(run_dir)
    assert {"d", "g"} == set(found(run_dir, WantedSteps(first=600, last=600))[0][0].loss_components)


def without_curves(folder: RunFolder) -> None:
    folder.curves.unlink()


def with_a_torn_block(folder: RunFolder) -> None:
    folder.curves.write_bytes(folder.curves.read_bytes()[:-9])


def with_an_unknown_block(folder: RunFolder) -> None:
    lines = folder.curves.read_bytes().splitlines(keepends=True)
    folder.curves.write_bytes(lines[0] + add_checksum(b'{"v":99}') + b"".join(lines[1:]))


def with_blocks_of_lines_that_are_gone(folder: RunFolder) -> None:
    lines = folder.metrics.read_bytes().splitlines(keepends=True)
    folder.metrics.write_bytes(b"".join(lines[:-200]))


@pytest.mark.parametrize(
    "harm", [without_curves, with_a_torn_block, with_an_unknown_block, with_blocks_of_lines_that_are_gone]
)
def test_what_the_curves_do_not_say_is_read_in_the_journal(train, run_dir, harm):
    train(range(1, 1100), range(800, 1400))
    harm(RunFolder.under(run_dir))

    require_the_same(run_dir)


def flip(lines: list[bytes], number: int) -> bytes:
    return lines[number][:9] + b"#" + lines[number][10:]


@pytest.mark.parametrize("seed", range(4))
def test_damaged_and_reformatted_lines_are_judged_as_everywhere(train, run_dir, seed):
    train(range(1, 700), range(301, 900))
    journal = RunFolder.under(run_dir).metrics
    lines = journal.read_bytes().splitlines(keepends=True)
    chance = random.Random(seed)
    # The first line of the second attempt decides what it supersedes.
    for number in [699, *chance.sample(range(len(lines) - 300), 60)]:
        # Other lines stay where they are.
        lines[number] = flip(lines, number)
    for number in chance.sample(range(len(lines) - 300), 60):
        if b"#" not in lines[number]:
            lines[number] = lines[number][:-1] + b"\r"
            lines[number + 1] = b"\n" + lines[number + 1][1:]
    journal.write_bytes(b"".join(lines))

    require_the_same(run_dir)


def test_a_block_without_one_intact_line_has_no_updates(train, run_dir):
    train(range(1, 600), range(257, 900))
    journal = RunFolder.under(run_dir).metrics
    lines = journal.read_bytes().splitlines(keepends=True)
    # All but the last one of the second attempt's first block, which says that the block is of this journal.
    for number in range(599, 599 + 255):
        lines[number] = flip(lines, number)
    journal.write_bytes(b"".join(lines))

    require_the_same(run_dir)


def test_lines_of_a_newer_version_are_refused(train, run_dir):
    train(range(1, 300))
    with RunFolder.under(run_dir).metrics.open("ab") as file:
        file.write(add_checksum(b'{"v":99,"step":301,"attempt":1}'))

    with pytest.raises(NewerFormat):
        StepIndex(RunFolder.under(run_dir))
