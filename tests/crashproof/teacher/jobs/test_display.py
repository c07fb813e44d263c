"""What somebody sees who watches a generation job."""

from __future__ import annotations

import io
from decimal import Decimal

import pytest

from crashproof.records.requests import Spending
from crashproof.teacher.jobs.display import show_job
from crashproof.testing import FakeClock

SPENT = Spending(answers=3, spent=Decimal("1.25"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(clock: FakeClock, *moments: tuple[float, int, Spending], num_questions: int = 100) -> list[str]:
    stream = io.StringIO()
    with show_job(stream=stream, clock=clock) as progress:
        for seconds, done, spending in moments:
            clock.advance(seconds)
            progress.advance(done, num_questions, spending)
    return stream.getvalue().splitlines()


def test_elsewhere_than_on_a_terminal_it_is_a_line_every_ten_seconds(clock: FakeClock) -> None:
    lines = lines_of(clock, (4, 8, SPENT), (6, 20, SPENT), (4, 30, SPENT), (6, 40, SPENT))

    assert [
        "generate: 20 of 100  2.0/s  $1.25 spent  40 s left",
        "generate: 40 of 100  2.0/s  $1.25 spent  30 s left",
    ] == lines


def test_requests_in_doubt_are_told(clock: FakeClock) -> None:
    (line,) = lines_of(clock, (10, 20, Spending(requests_in_doubt=3)))

    assert "generate: 20 of 100  2.0/s  3 in doubt  40 s left" == line


def test_what_costs_nothing_has_no_price(clock: FakeClock) -> None:
    (line,) = lines_of(clock, (10, 20, Spending()))

    assert "$" not in line


def test_the_pace_is_that_of_the_last_minute(clock: FakeClock) -> None:
    """A restart finds thousands of answers at once."""
    moments = [(10.0, 5_000 + 10 * number, SPENT) for number in range(1, 10)]

    lines = lines_of(clock, *moments, num_questions=6_000)

    assert lines[-1].startswith("generate: 5,090 of 6,000  1.0/s")


def test_without_a_pace_no_time_is_promised(clock: FakeClock) -> None:
    assert ["generate: 0 of 100  0.0/s"] == lines_of(clock, (10, 0, Spending()))


def test_on_a_terminal_it_is_a_bar(clock: FakeClock) -> None:
    stream = Terminal()

    with show_job(stream=stream, clock=clock) as progress:
        clock.advance(10)
        progress.advance(20, 100, SPENT)

    said = stream.getvalue()
    assert "generate" in said
    assert "20/100" in said
    assert "2.0/s  $1.25 spent" in said


def test_an_error_before_the_first_question_is_not_shown_below_a_bar(clock: FakeClock) -> None:
    stream = Terminal()

    with pytest.raises(ValueError, match="malformed"), show_job(stream=stream, clock=clock):
        raise ValueError("malformed")

    assert "" == stream.getvalue()
