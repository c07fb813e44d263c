from __future__ import annotations

import pytest

from crashproof.rules.ranks.overdue import Activity, overdue_activity

NOW = 100.0


def activity(what: str, seconds: float, *, is_wait: bool) -> Activity:
    return Activity(what=what, since=NOW - seconds, is_wait=is_wait)


@pytest.mark.parametrize(
    "activities, lost_seconds, expected",
    [
        ([], 11, None),
        ([activity("summing", 12, is_wait=True)], 0, None),
        ([activity("summing", 14, is_wait=True)], 0, "summing"),
        ([activity("computing", 900, is_wait=False)], 0, None),
        ([activity("computing", 12, is_wait=False)], 11, None),
        ([activity("computing", 14, is_wait=False)], 11, "computing"),
        ([activity("computing", 14, is_wait=False)], 9, None),
        ([activity("computing", 90, is_wait=False), activity("summing", 14, is_wait=True)], 0, "summing"),
        ([activity("summing", 14, is_wait=True), activity("computing", 90, is_wait=False)], 11, "computing"),
    ],
    ids=[
        "nothing",
        "a-wait-within-the-limit",
        "a-wait-beyond-it",
        "long-work-while-the-others-are-there",
        "work-that-is-not-long-yet",
        "long-work-of-a-lost-run",
        "long-work-of-a-run-that-was-just-lost",
        "a-wait-within-long-work",
        "the-oldest-is-named",
    ],
)
def test_which_activity_has_lasted_too_long(activities, lost_seconds, expected):
    found = overdue_activity(activities, now=NOW, longest_seconds=13.0, lost_seconds=lost_seconds)

    assert expected == (found and found.what)
