"""Pictures of a run: what the writer keeps for them, and what a follower reads from that and from the journal."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from crashproof import RunReader
from crashproof.disk.files import Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NewerFormat
from crashproof.reading.curves import CurveFollower, Recomputed
from crashproof.records.curves import CurveBlock
from crashproof.records.lines.codec import decode, encode
from crashproof.rules.curves import point_of
from crashproof.tracking.metrics.curve_writer import UPDATES_A_BLOCK


def follow(run: Path) -> CurveFollower:
    follower = CurveFollower(RunFolder.under(run))
    assert follower.refresh()
    return follower


def steps_and_losses(follower: CurveFollower) -> list[tuple[int, float | None]]:
    return [(each.last_step, each.series["loss"].last) for each in follower.curve(most_points=10**6).points]


def canonical(run: Path) -> list[tuple[int, float | None]]:
    lines = RunReader.open(run).history()
    return [(line.step, line.loss if math.isfinite(line.loss) else None) for line in lines]


def blocks_of(run: Path) -> list[CurveBlock]:
    import msgspec

    decoder = msgspec.json.Decoder(CurveBlock)
    return [decode(line, decoder) for line in RunFolder.under(run).curves.read_bytes().splitlines(keepends=True)]


@pytest.fixture
def train(open_tracker, update, clock, run_dir):
    """Report steps in one attempt after the other, as kills and resumes make them."""

    def report(*attempts: tuple[int, int], **given: object) -> None:
        for first, last in attempts:
            tracker = open_tracker(total_steps=10_000, **given)
            for step in range(first, last + 1):
                clock.advance(seconds=1)
                update(tracker, step, loss=random.Random(step).gauss(2.0, 0.1))
            # As a heartbeat does: blocks are written when the session takes in the updates.
            assert last == tracker.session.steps_completed

    return report


def test_a_short_run_has_no_blocks_and_every_update_is_a_point(train, run_dir):
    train((1, 50))

    assert not RunFolder.under(run_dir).curves.exists()
    assert canonical(run_dir) == steps_and_losses(follow(run_dir))


def test_a_block_agrees_with_its_lines(train, run_dir):
    train((1, 3 * UPDATES_A_BLOCK + 7))
    lines = list(RunReader.open(run_dir).history())

    blocks = blocks_of(run_dir)

    assert 3 == len(blocks)
    for place, block in enumerate(blocks):
        point = point_of(lines[place * UPDATES_A_BLOCK : (place + 1) * UPDATES_A_BLOCK])
        assert (point.first_step, point.last_step, point.series) == (block.first_step, block.last_step, block.series)


def test_a_spike_of_one_step_and_a_nan_are_in_the_picture_however_few_its_points(open_tracker, update, run_dir):
    tracker = open_tracker(total_steps=10_000)
    for step in range(1, 5001):
        update(tracker, step, loss=77.0 if step == 3210 else math.nan if step == 4321 else 2.0)

    for most_points in (1, 7, 500):
        points = follow(run_dir).curve(most_points=most_points).points
        spiked = [each for each in points if each.series["loss"].high == 77.0]
        marked = [each for each in points if each.series["loss"].num_non_finite]
        assert [True] == [each.first_step <= 3210 <= each.last_step for each in spiked]
        assert [True] == [each.first_step <= 4321 <= each.last_step for each in marked]
        assert 5000 == sum(each.num_updates for each in points)
        assert len(points) <= most_points


@pytest.mark.parametrize(
    "attempts",
    [
        pytest.param([(1, 700), (501, 900)], id="one-resume"),
        pytest.param([(1, 700), (1, 300)], id="from-the-beginning"),
        pytest.param([(1, 900), (301, 700), (601, 650), (101, 1200)], id="many"),
        pytest.param([(1, 600), (601, 1300)], id="nothing-repeated"),
    ],
)
def test_resumed_attempts_leave_the_canonical_history(train, run_dir, attempts):
    train(*attempts)

    follower = follow(run_dir)

    assert canonical(run_dir) == steps_and_losses(follower)


def test_recomputed_steps_are_reported(train, run_dir):
    train((1, 700), (501, 900), (301, 400))

    told = follow(run_dir).recomputed

    assert [
        Recomputed(first_step=501, last_step=700, attempt=2),
        Recomputed(first_step=301, last_step=900, attempt=3),
    ] == told


def test_following_a_live_run_is_the_same_as_reading_it_afterwards(open_tracker, update, run_dir):
    follower = CurveFollower(RunFolder.under(run_dir))
    follower.refresh()
    steps = random.Random(7)
    step = 0
    for _ in range(4):
        tracker = open_tracker(total_steps=10_000)
        for _ in range(steps.randrange(1, 700)):
            step += 1
            update(tracker, step, loss=steps.random())
            if step % 97 == 0:
                follower.refresh()
        step = max(0, step - steps.randrange(400))
    follower.refresh()

    assert canonical(run_dir) == steps_and_losses(follower)
    assert steps_and_losses(follow(run_dir)) == steps_and_losses(follower)
    assert follow(run_dir).recomputed == follower.recomputed


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda path: path.unlink(), id="gone"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-100]), id="torn"),
        pytest.param(lambda path: path.write_bytes(b"nothing of ours\n" * 9), id="garbled"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes().replace(b"loss", b"lozz")), id="altered"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
    ],
)
def test_without_good_blocks_the_journal_is_read(train, run_dir, harm):
    train((1, 1000))
    harm(RunFolder.under(run_dir).curves)

    assert canonical(run_dir) == steps_and_losses(follow(run_dir))


def test_blocks_of_lines_lost_in_a_power_loss_are_ignored(train, run_dir, open_tracker):
    train((1, 1000))
    open_tracker(total_steps=10_000).close()
    metrics = RunFolder.under(run_dir).metrics
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join(lines[:300]))

    assert canonical(run_dir) == steps_and_losses(follow(run_dir))
    train((301, 1300))
    assert canonical(run_dir) == steps_and_losses(follow(run_dir))
    # The first attempt's only block that is still true, and those of the second.
    assert [1, 301] == [block.first_step for block in blocks_of(run_dir)][:2]


def test_a_repaired_journal_is_read_anew(train, run_dir):
    train((1, 1000))
    follower = follow(run_dir)
    metrics = RunFolder.under(run_dir).metrics
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([*lines[:100], *lines[101:]]))

    follower.refresh()

    assert canonical(run_dir) == steps_and_losses(follower)
    train((1001, 1400))
    follower.refresh()
    assert canonical(run_dir) == steps_and_losses(follower) == steps_and_losses(follow(run_dir))


def test_a_damaged_line_is_skipped(train, run_dir):
    train((1, 400))
    metrics = RunFolder.under(run_dir).metrics
    metrics.write_bytes(metrics.read_bytes().replace(b'"step":77,', b'"step":78,'))

    assert canonical(run_dir) == steps_and_losses(follow(run_dir))
    assert 399 == len(steps_and_losses(follow(run_dir)))


def test_a_line_that_is_still_being_written_comes_later(train, run_dir):
    train((1, 10))
    metrics = RunFolder.under(run_dir).metrics
    content = metrics.read_bytes()
    metrics.write_bytes(content[:-20])

    follower = follow(run_dir)
    seen = len(steps_and_losses(follower))
    metrics.write_bytes(content)
    follower.refresh()

    assert (9, 10) == (seen, len(steps_and_losses(follower)))


def test_a_part_of_the_history_is_shown_step_by_step(train, run_dir):
    train((1, 900), (501, 2000))

    curve = follow(run_dir).curve(most_points=1000, first_step=450, last_step=1100)

    assert list(range(450, 1101)) == [each.last_step for each in curve.points]
    assert not curve.is_decimated


def test_a_range_without_updates_is_empty(train, run_dir):
    train((1, 300))
    follower = follow(run_dir)

    assert [] == follower.curve(most_points=10, first_step=5000).points
    assert [] == follower.curve(most_points=10, first_step=20, last_step=10).points


def test_a_long_journal_without_blocks_is_shown_as_far_as_it_was_read(train, run_dir):
    train((1, 2000))
    RunFolder.under(run_dir).curves.unlink()
    times = iter(range(10**6))
    follower = CurveFollower(RunFolder.under(run_dir), steady=lambda: float(next(times)))

    is_all = follower.refresh(most_seconds=0.5)
    curve = follower.curve(most_points=100)

    assert (False, False) == (is_all, curve.is_complete)
    assert 0 < curve.num_updates < 2000
    while not follower.refresh(most_seconds=0.5):
        pass
    assert canonical(run_dir) == steps_and_losses(follower)
    assert follower.curve(most_points=100).is_complete


def test_a_loop_that_goes_back_within_an_attempt_is_followed(open_tracker, update, run_dir):
    tracker = open_tracker(total_steps=10_000)
    for step in [*range(1, 500), *range(200, 1000)]:
        update(tracker, step, loss=float(step))

    assert canonical(run_dir) == steps_and_losses(follow(run_dir))


def test_a_disk_that_refuses_blocks_affects_nothing_else(train, run_dir, caplog):
    class WithoutCurves(Disk):
        def open_to_append(self, path: Path) -> int:
            if path.name == "curves.jsonl":
                raise OSError(28, "No space left on device")
            return super().open_to_append(path)

    train((1, 1000), disk=WithoutCurves())

    assert canonical(run_dir) == steps_and_losses(follow(run_dir))
    assert 1000 == len(canonical(run_dir))
    assert 1 == sum("No more lines are written to " in message for message in caplog.messages)


def test_the_blocks_are_archived_too(open_tracker, train, run_dir):
    train((1, 400))
    open_tracker(config={"other": 1}, total_steps=10_000)

    assert not RunFolder.under(run_dir).curves.exists()
    assert [1] == [len(list(each.glob("curves.jsonl"))) for each in RunFolder.under(run_dir).archive.iterdir()]
    assert [] == follow(run_dir).curve(most_points=5).points


def test_a_line_of_a_newer_version_is_refused(train, run_dir):
    train((1, 3))
    metrics = RunFolder.under(run_dir).metrics
    with metrics.open("ab") as file:
        file.write(encode({"v": 99, "step": 4}))

    with pytest.raises(NewerFormat):
        CurveFollower(RunFolder.under(run_dir)).refresh()


def test_a_run_that_has_not_begun_has_an_empty_curve(tmp_path):
    curve = follow(tmp_path / "nowhere").curve(most_points=10)

    assert ([], 0, True) == (curve.points, curve.num_updates, curve.is_complete)


def test_lines_behind_an_offset_come_with_the_next_offset(train, run_dir):
    train((1, 20))
    follower = follow(run_dir)
    end = follower.end
    train((21, 25))

    told = list(follower.lines_after(end))

    assert [21, 22, 23, 24, 25] == [update.step for _, update in told]
    assert RunFolder.under(run_dir).metrics.stat().st_size == told[-1][0]
