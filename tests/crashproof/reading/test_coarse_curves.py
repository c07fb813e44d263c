"""Pictures of long runs: joined blocks, and what a follower does where they are too coarse or wrong."""

from __future__ import annotations

import math
import os
import random
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from crashproof import RunReader
from crashproof.disk.files import Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.reading.curves import CurveFollower
from crashproof.records.curves import CoarseBlock, CurveBlock
from crashproof.records.lines.checksummed_line import CHECKSUM_BYTES, add_checksum
from crashproof.records.lines.codec import decode
from crashproof.rules.curves import joined
from crashproof.tracking.metrics.curve_writer import BLOCKS_JOINED, UPDATES_A_BLOCK

COARSE = BLOCKS_JOINED * UPDATES_A_BLOCK


@pytest.fixture
def train(open_tracker, update, run_dir):
    """Report steps in one attempt after the other; one loss of 77 and one NaN are among them."""

    def report(*attempts: tuple[int, int], **given: object) -> None:
        for first, last in attempts:
            tracker = open_tracker(total_steps=100_000, **given)
            for step in range(first, last + 1):
                loss = 77.0 if step == 3210 else math.nan if step == 3333 else random.Random(step).random()
                update(tracker, step, loss=loss)
            tracker.close()

    return report


def decoded(path: Path, kind: type) -> list:
    decoder = msgspec.json.Decoder(kind)
    return [decode(line, decoder) for line in path.read_bytes().splitlines(keepends=True)]


def follow(run: Path) -> CurveFollower:
    follower = CurveFollower(RunFolder.under(run))
    assert follower.refresh()
    return follower


def seen(follower: CurveFollower, **part: int) -> list[tuple[int, float | None]]:
    points = follower.curve(most_points=10**6, **part).points
    return [(each.last_step, each.series["loss"].last) for each in points]


def canonical(run: Path) -> list[tuple[int, float | None]]:
    lines = RunReader.open(run).history()
    return [(line.step, line.loss if math.isfinite(line.loss) else None) for line in lines]


def test_a_coarse_block_is_its_blocks_joined(train, run_dir):
    train((1, 2 * COARSE + 300))
    folder = RunFolder.under(run_dir)
    blocks, coarse = decoded(folder.curves, CurveBlock), decoded(folder.coarse_curves, CoarseBlock)
    content = folder.curves.read_bytes()

    assert 2 == len(coarse)
    for number, each in enumerate(coarse):
        parts = blocks[number * BLOCKS_JOINED : (number + 1) * BLOCKS_JOINED]
        assert joined(parts).series == each.series
        assert (parts[0].offset, parts[-1].end) == (each.offset, each.end)
        assert BLOCKS_JOINED == content[each.blocks_offset : each.blocks_end].count(b"\n")


def test_a_picture_of_few_points_is_made_of_coarse_blocks_and_has_every_spike(train, run_dir):
    train((1, 20 * COARSE + 300))
    # What is finer is not needed, and not there.
    RunFolder.under(run_dir).curves.unlink()

    curve = follow(run_dir).curve(most_points=10)

    assert 20 * COARSE + 300 == curve.num_updates
    assert len(curve.points) <= 10
    assert 77.0 == max(each.series["loss"].high for each in curve.points)
    assert 1 == sum(each.series["loss"].num_non_finite for each in curve.points)


def test_a_picture_of_many_points_is_made_of_finer_blocks(train, run_dir):
    train((1, 20 * COARSE + 300))
    follower = follow(run_dir)

    curve = follower.curve(most_points=300)
    part = follower.curve(most_points=5000, first_step=COARSE, last_step=2 * COARSE)

    assert len(curve.points) > 150
    assert 20 * COARSE + 300 == curve.num_updates == sum(each.num_updates for each in curve.points)
    assert COARSE + 1 == part.num_updates == len(part.points)


@pytest.mark.parametrize(
    "attempts",
    [
        pytest.param([(1, 9000), (5001, 6000)], id="into-a-coarse-block"),
        pytest.param([(1, 5000), (1, 300)], id="from-the-beginning"),
        pytest.param([(1, 9000), (4097, 9000)], id="between-two-coarse-blocks"),
        pytest.param([(1, 4500), (4501, 9000), (100, 4300)], id="many"),
    ],
)
def test_resumed_attempts_leave_the_canonical_history(train, run_dir, attempts):
    train(*attempts)
    expected = canonical(run_dir)

    follower = follow(run_dir)

    assert len(expected) == follower.curve(most_points=2).num_updates
    assert expected == seen(follower)


def test_a_live_run_that_goes_back_into_a_coarse_block_is_followed(train, run_dir):
    train((1, 5000))
    follower = follow(run_dir)
    train((2000, 2700))

    assert follower.refresh()
    assert canonical(run_dir) == seen(follower)


def test_a_further_part_of_the_last_update_of_a_coarse_block_belongs_to_it(open_tracker, update, run_dir):
    tracker = open_tracker(total_steps=100_000)
    for step in range(1, COARSE + 2):
        update(tracker, step, loss=float(step), loss_components={"d": 1.0})
    journal = RunFolder.under(run_dir).metrics
    content = journal.read_bytes()
    lines = content.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:COARSE]))
    follower = follow(run_dir)
    # As an earlier version may have written it: the coarse block without the part.
    part = lines[COARSE - 1].replace(b'"d":', b'"g":')
    journal.write_bytes(b"".join(lines[:COARSE]) + add_checksum(part[:-CHECKSUM_BYTES] + b"}"))
    follower.refresh()

    last = follower.curve(most_points=1 << 20).points[-1]
    assert (COARSE, {"loss_components.d", "loss_components.g"}) == (
        last.last_step,
        {name for name in last.series if name.startswith("loss_components")},
    )


def altered(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"loss", b"lozz"))


def of_another_run(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[3:]))


@pytest.mark.parametrize("name", ["curves.jsonl", "curves_coarse.jsonl"])
@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(os.unlink, id="gone"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-100]), id="torn"),
        pytest.param(lambda path: path.write_bytes(b"nothing of ours\n" * 9), id="garbled"),
        pytest.param(altered, id="altered"),
        pytest.param(of_another_run, id="begins-later"),
    ],
)
def test_harm_to_one_of_the_files_costs_time_and_nothing_else(train, run_dir, name, harm):
    train((1, 2 * COARSE + 700))
    harm(RunFolder.under(run_dir).progress / name)

    follower = follow(run_dir)

    assert 2 * COARSE + 700 == follower.curve(most_points=2).num_updates
    assert canonical(run_dir) == seen(follower)
    # The next attempt writes on, whatever is left of them.
    train((2 * COARSE + 701, 4 * COARSE + 100))
    assert follower.refresh()
    assert canonical(run_dir) == seen(follow(run_dir)) == seen(follower)


def test_coarse_blocks_of_lines_lost_in_a_power_loss_are_cut_off(train, run_dir):
    train((1, 2 * COARSE + 300))
    folder = RunFolder.under(run_dir)
    lines = folder.metrics.read_bytes().splitlines(keepends=True)
    folder.metrics.write_bytes(b"".join(lines[: COARSE + 1000]))

    assert canonical(run_dir) == seen(follow(run_dir))

    train((COARSE + 1001, 3 * COARSE))
    assert canonical(run_dir) == seen(follow(run_dir))
    firsts = [each.first_step for each in decoded(folder.coarse_curves, CoarseBlock)]
    assert (1, 2) == (firsts[0], len(firsts))


def test_coarse_blocks_without_their_blocks_are_cut_off(train, run_dir):
    train((1, 2 * COARSE + 300))
    folder = RunFolder.under(run_dir)
    blocks = folder.curves.read_bytes().splitlines(keepends=True)
    folder.curves.write_bytes(b"".join(blocks[: BLOCKS_JOINED + 3]))

    train((2 * COARSE + 301, 4 * COARSE))

    coarse = decoded(folder.coarse_curves, CoarseBlock)
    assert all(earlier.blocks_end <= later.blocks_offset for earlier, later in pairwise(coarse))
    assert canonical(run_dir) == seen(follow(run_dir))


def test_a_disk_that_refuses_the_coarse_file_affects_nothing_else(train, run_dir, caplog):
    class WithoutCoarse(Disk):
        def open_to_append(self, path: Path) -> int:
            if path.name == "curves_coarse.jsonl":
                raise OSError(28, "No space left on device")
            return super().open_to_append(path)

    train((1, COARSE + 1000), disk=WithoutCoarse())

    assert canonical(run_dir) == seen(follow(run_dir))
    assert 1 == sum("No more lines are written to " in message for message in caplog.messages)


def test_a_coarse_file_that_cannot_be_opened_again_affects_nothing_else(train, run_dir, caplog):
    train((1, COARSE + 300))
    coarse = RunFolder.under(run_dir).coarse_curves
    coarse.unlink()
    coarse.mkdir()

    train((COARSE + 301, COARSE + 1000))

    assert COARSE + 1000 == len(canonical(run_dir))
    assert 1 == sum("No more lines are written to " in message for message in caplog.messages)


def test_the_coarse_file_goes_with_its_session(open_tracker, train, run_dir):
    train((1, COARSE + 300))
    open_tracker(config={"other": 1}, total_steps=10_000)

    folder = RunFolder.under(run_dir)
    assert not folder.coarse_curves.exists()
    assert [1] == [len(list(each.glob("curves_coarse.jsonl"))) for each in folder.archive.iterdir()]
