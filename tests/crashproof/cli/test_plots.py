from __future__ import annotations

import pytest

from crashproof.cli.plots import plot, plot_together
from crashproof.records.metrics import MetricsSnapshot
from crashproof.rules.curves import point_of


def points(losses, size=1):
    updates = [
        MetricsSnapshot(
            step=step,
            timestamp=0.0,
            wall_clock_hours=0.0,
            loss=loss,
            loss_components={"kd": loss},
            learning_rate=0.1,
            samples_processed=step,
            tokens_processed=step,
        )
        for step, loss in enumerate(losses, start=1)
    ]
    return [point_of(updates[start : start + size]) for start in range(0, len(updates), size)]


@pytest.mark.parametrize("is_unicode", [True, False])
@pytest.mark.parametrize("width, height", [(80, 12), (30, 5), (200, 40)])
def test_a_picture_keeps_its_size(is_unicode, width, height):
    lines = plot(points([1.0 / step for step in range(1, 900)]), width=width, height=height, is_unicode=is_unicode)

    assert height == len(lines)
    assert max(map(len, lines)) <= width
    assert is_unicode or all(line.isascii() for line in lines)


@pytest.mark.parametrize("is_unicode", [True, False])
def test_a_spike_of_one_step_in_thousands_is_a_stroke_to_the_top(is_unicode):
    losses = [1.0] * 10_000
    losses[7_000] = 9.0

    lines = plot(points(losses, size=100), width=80, height=12, is_unicode=is_unicode)
    column = next(place for place, sign in enumerate(lines[0]) if place > 9 and sign != " ")

    assert 0.65 < (column - 10) / 70 < 0.75
    assert 11 == sum(len(line) > column and line[column] != " " for line in lines[:-1])


def test_what_is_not_finite_is_marked_above_its_step():
    losses = [2.0] * 100
    losses[49] = float("nan")

    lines = plot(points(losses, size=10), width=80, height=10, is_unicode=False)

    assert lines[0].startswith(" NaN, inf ")
    assert 1 == lines[0].count("!")
    assert 0.35 < (lines[0].index("!") - 10) / 70 < 0.55


def test_the_axes_have_their_ends():
    lines = plot(points([4.0, 3.0, 2.0, 1.0]), width=60, height=8, is_unicode=False)

    assert lines[0].startswith("        4 *")
    assert lines[-2].startswith("        1 ")
    assert "step 1" in lines[-1]
    assert lines[-1].endswith("4")


def test_losses_of_many_sizes_are_drawn_on_a_logarithmic_axis():
    lines = plot(points([1000.0, 10.0, 0.1]), width=60, height=10, is_unicode=False)

    assert ", log" in lines[-1]
    assert lines[4].startswith("       10")


@pytest.mark.parametrize("losses", [[1e308, -1e308], [5e-324, 1e308], [3.0], [2.0, 2.0], [-1.0, 0.0]])
def test_extreme_losses_are_drawn(losses):
    assert 6 == len(plot(points(losses), width=40, height=6, is_unicode=True))


def test_nothing_finite_and_nothing_at_all():
    assert ["(nothing finite to draw)"] == plot(points([float("nan")]), width=40, height=6, is_unicode=True)
    assert [] == plot([], width=40, height=6, is_unicode=True)
    assert [] == plot_together([[], []], width=40, height=6)


def test_several_curves_have_their_letters_and_share_the_axes():
    lines = plot_together([points([1.0] * 50), points([5.0] * 100)], width=60, height=8)

    assert {"b"} == set(lines[0][10:].strip())
    assert {"a"} == set(lines[6][10:].strip())
    assert len(lines[6]) < 40
    assert 60 == len(lines[0])
