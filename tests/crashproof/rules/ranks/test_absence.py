from __future__ import annotations

import pytest

from crashproof.rules.ranks.absence import (
    Absence,
    ProcessState,
    RankIdentity,
    Sign,
    is_explained,
    is_roll_complete,
    names_of,
    reason_of,
    those_to_blame,
)

NETWORK = "Timed out"


def absence(rank: int, state: ProcessState = ProcessState.UNKNOWN, *, beats: int = 0, left: str = "") -> Absence:
    """A rank whose sign has changed by some beats while it was looked at."""
    last = Sign(beats=4 + beats, what="computing step 7", seconds=8.6, left=left)
    return Absence(rank=rank, state=state, first=Sign(beats=4), last=last)


@pytest.mark.parametrize(
    "found, expected",
    [
        (absence(1, ProcessState.STOPPED), "stopped (state T)"),
        (absence(1, ProcessState.TRACED), "stopped by a debugger (state t)"),
        (absence(1, ProcessState.ENDED), "its process has ended"),
        (absence(1, ProcessState.ENDED, left="it ended with KeyError: 'x'"), "it ended with KeyError: 'x'"),
        (absence(1, beats=3), "it is alive, and has been computing step 7 for 9 s"),
        (absence(1), "it gives no sign of life"),
        (absence(1, ProcessState.RUNNING), "it gives no sign of life"),
        (Absence(rank=1), "it has said nothing yet"),
        (Absence(rank=1, unread="the store at a:1 does not answer"), "the store at a:1 does not answer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_why_a_rank_does_not_answer(found, expected):
    assert f"{expected} (Timed out)" == reason_of([found], network=NETWORK)
    assert expected == reason_of([found], network="")


def test_different_reasons_are_told_apart_and_equal_ones_once():
    stopped, ended = absence(1, ProcessState.STOPPED), absence(3, ProcessState.ENDED)

    assert "rank 1: stopped (state T); rank 3: its process has ended (Timed out)" == reason_of(
        [stopped, ended], network=NETWORK
    )
    assert "it gives no sign of life (Timed out)" == reason_of([absence(1), absence(2)], network=NETWORK)
    assert "Timed out" == reason_of([], network=NETWORK)


def test_ranks_are_named_with_their_processes():
    identity = RankIdentity(host="host-b", boot_id="b", pid_namespace="p", pid=123, start_ticks=7)
    known = Absence(rank=1, identity=identity)
    many = [absence(rank) for rank in range(2, 12)]

    assert "another rank" == names_of([])
    assert "rank 1 (host-b, pid 123)" == names_of([known])
    assert "rank 1 (host-b, pid 123), rank 2 and rank 3" == names_of([known, *many[:2]])
    assert "rank 1 (host-b, pid 123), rank 2, rank 3, rank 4, rank 5, rank 6, rank 7, rank 8 and 3 more" == names_of(
        [known, *many]
    )


@pytest.mark.parametrize(
    "absences, expected",
    [
        ([absence(1, ProcessState.ENDED), absence(2), absence(3, beats=1)], [1]),
        ([absence(1, left="it ended"), absence(2, ProcessState.STOPPED)], [1, 2]),
        ([absence(2), absence(3, beats=1)], [2]),
        ([absence(3, beats=1)], [3]),
        ([], []),
    ],
    ids=["dead-before-silent-and-late", "left-and-stopped", "silent-before-late", "late", "nobody"],
)
def test_who_is_late_because_of_another_is_not_blamed(absences, expected):
    assert expected == [each.rank for each in those_to_blame(absences)]


@pytest.mark.parametrize(
    "absences, seconds, expected",
    [
        ([], 0, True),
        ([absence(1, ProcessState.ENDED)], 0, True),
        ([absence(1, ProcessState.ENDED), absence(2)], 1, False),
        ([absence(1, ProcessState.ENDED), absence(2)], 2, True),
        ([absence(2)], 60, False),
    ],
    ids=["nobody", "all-explained", "some-explained", "some-explained-and-time-to-answer", "none-explained"],
)
def test_when_a_roll_call_has_found_out_what_it_can(absences, seconds, expected):
    assert expected is is_roll_complete(absences, seconds=seconds)


def test_only_what_cannot_answer_any_more_needs_no_waiting():
    assert is_explained(absence(1, ProcessState.STOPPED))
    assert is_explained(absence(1, left="it has finished"))
    assert not is_explained(absence(1, ProcessState.RUNNING))
    assert not is_explained(Absence(rank=1))
