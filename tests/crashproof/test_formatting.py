from __future__ import annotations

import pytest

from crashproof.formatting import ago, as_bytes, as_duration


@pytest.mark.parametrize(
    "seconds, words",
    [(None, "unknown"), (35, "35 s"), (125, "2 min 5 s"), (7800, "2 h 10 min"), (200_000, "2 d 7 h")],
    ids=["unknown", "seconds", "minutes", "hours", "days"],
)
def test_durations_are_readable(seconds: float | None, words: str) -> None:
    assert words == as_duration(seconds)


def test_moments_are_relative_to_now() -> None:
    assert ("never", "5 s ago", "0 s ago") == (ago(None, 9.0), ago(5.0, 10.0), ago(11.0, 10.0))


@pytest.mark.parametrize(
    "count, words",
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1500, "1.5 kB"),
        (2_200_000, "2.2 MB"),
        (7 * 10**9, "7.0 GB"),
        (10**13, "10.0 TB"),
    ],
    ids=["none", "bytes", "kilo", "mega", "giga", "tera"],
)
def test_sizes_are_readable(count: int, words: str) -> None:
    assert words == as_bytes(count)
