from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest

from crashproof.records.curves import Bucket, CurvePoint
from crashproof.views.svg import CurveMarks, curve_svg

SVG = "{http://www.w3.org/2000/svg}"


def point(step: int, *, low: float | None, high: float | None = None, bad: int = 0) -> CurvePoint:
    high = low if high is None else high
    bucket = Bucket(low, high, low, low, 0 if low is None else 1, bad)
    return CurvePoint(
        first_step=step,
        last_step=step,
        num_updates=1,
        attempt=1,
        timestamp=0.0,
        wall_clock_hours=0.0,
        series={"loss": bucket},
    )


def drawn(*points: CurvePoint, **marks: object) -> ElementTree.Element:
    return ElementTree.fromstring(curve_svg(points, marks=CurveMarks(**marks)))


def texts(picture: ElementTree.Element) -> list[str]:
    return [each.text for each in picture.iter(f"{SVG}text")]


def test_a_curve_says_in_words_what_it_shows():
    picture = drawn(point(1, low=4.0), point(50, low=9.0), point(1000, low=1.0))

    assert "loss from step 1 to 1,000, between 1 and 9" == picture.get("aria-label")


def test_a_spike_inside_a_point_is_a_stroke_to_its_top():
    picture = drawn(point(1, low=1.0), point(2, low=1.0, high=50.0), point(3, low=1.0))
    strokes = [each.get("d") for each in picture.iter(f"{SVG}path") if each.get("stroke-opacity") == ".5"]

    assert ["M406.0 232.0V14.0"] == strokes


def test_what_is_not_finite_is_marked_and_interrupts_the_line():
    picture = drawn(point(1, low=1.0), point(2, low=1.5), point(3, low=None, bad=1), point(4, low=2.0))

    assert ["not finite at step 3"] == [each.text for each in picture.iter(f"{SVG}title")]
    assert 1 == sum(1 for _ in picture.iter(f"{SVG}circle"))


def test_attempts_checkpoints_and_recomputed_steps_are_drawn():
    picture = drawn(
        *(point(step, low=1.0 / step) for step in range(1, 100)),
        attempts=[(1, 1), (2, 60)],
        checkpoints=[50],
        recomputed=[(51, 59)],
    )

    assert {"attempt 1", "attempt 2"} <= set(texts(picture))
    assert 1 == sum(1 for _ in picture.iter(f"{SVG}rect"))


@pytest.mark.parametrize(
    "points",
    [
        pytest.param([], id="none"),
        pytest.param([point(1, low=None, bad=1)], id="nothing-finite"),
    ],
)
def test_without_a_finite_value_there_is_no_picture(points):
    assert "" == curve_svg(points)


@pytest.mark.parametrize(
    "lows", [[2.0], [3.0, 3.0], [-1e308, 1e308], [0.0, 5e-324], [1e-30, 1e30]], ids=lambda lows: str(lows)
)
def test_every_number_in_a_picture_is_finite(lows):
    content = curve_svg([point(step, low=low) for step, low in enumerate(lows)])
    picture = ElementTree.fromstring(content)

    assert "nan" not in content.lower()
    assert "inf" not in content.lower()
    assert all(math.isfinite(float(each.get("y"))) for each in picture.iter(f"{SVG}text"))
