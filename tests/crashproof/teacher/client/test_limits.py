from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teaching import in_virtual_time

from crashproof.teacher.client.limits import Gate, Limits, Place
from crashproof.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


class Crowd:
    """Requests that want through one gate."""

    def __init__(self, limits: Limits, clock: FakeClock) -> None:
        self.gate = Gate(limits, steady=clock.steady)
        self.clock = clock
        self.num_inside = 0
        self.most_inside = 0
        self.entered_at: list[float] = []

    async def go(
        self, *, seconds: float = 1.0, tokens: int = 1, used: int | None = None, overload: bool = False
    ) -> None:
        async with self.gate.place(tokens=tokens) as place:
            self.entered_at.append(self.clock.steady())
            self.num_inside += 1
            self.most_inside = max(self.most_inside, self.num_inside)
            assert self.num_inside <= max(self.gate.allowed, 1) or overload
            try:
                await asyncio.sleep(seconds)
            finally:
                self.num_inside -= 1
            if used is not None:
                place.used(used)
            if overload:
                self.gate.note_overload(place)
            else:
                self.gate.note_answer()


def run(work: Coroutine[Any, Any, Any], clock: FakeClock) -> Any:
    return in_virtual_time(work, clock)


def test_never_more_are_inside_than_allowed(clock):
    crowd = Crowd(Limits(concurrency=3), clock)

    async def many() -> None:
        await asyncio.gather(*(crowd.go() for _ in range(20)))

    run(many(), clock)
    assert 3 == crowd.most_inside
    assert [0.0] * 3 + [1.0] * 3 == sorted(crowd.entered_at)[:6]


def test_those_who_wait_come_in_their_order(clock):
    gate = Gate(Limits(concurrency=1), steady=clock.steady)
    order = []

    async def go(number: int) -> None:
        async with gate.place(tokens=1):
            order.append(number)
            await asyncio.sleep(1.0)

    async def many() -> None:
        await asyncio.gather(*(go(number) for number in range(6)))

    run(many(), clock)
    assert list(range(6)) == order


def test_one_wave_of_overload_halves_once(clock):
    crowd = Crowd(Limits(concurrency=16), clock)

    async def wave() -> None:
        await asyncio.gather(*(crowd.go(overload=True) for _ in range(16)))

    run(wave(), clock)
    assert 8 == crowd.gate.allowed


def test_a_wave_that_ends_in_the_very_moment_of_the_halving_halves_once(clock):
    """A clock that stands still must not make one overload out of many."""
    gate = Gate(Limits(concurrency=16), steady=clock.steady)

    async def wave() -> None:
        places = []
        for _ in range(16):
            async with gate.place(tokens=1) as place:
                places.append(place)
        for place in places:
            gate.note_overload(place)

    run(wave(), clock)
    assert 8 == gate.allowed


def test_each_new_wave_halves_again_and_one_is_always_allowed(clock):
    crowd = Crowd(Limits(concurrency=16), clock)
    seen = []

    async def waves() -> None:
        for _ in range(6):
            clock.advance(1.0)
            await crowd.go(overload=True)
            seen.append(crowd.gate.allowed)

    run(waves(), clock)
    assert [8, 4, 2, 1, 1, 1] == seen


def test_fewer_come_in_after_an_overload(clock):
    crowd = Crowd(Limits(concurrency=4), clock)

    async def overload_then_many() -> None:
        await crowd.go(overload=True)
        crowd.most_inside = 0
        await asyncio.gather(*(crowd.go(seconds=1.0) for _ in range(3)))

    run(overload_then_many(), clock)
    assert 2 == crowd.most_inside


def test_it_grows_back_by_one_for_each_round_of_answers_and_not_beyond(clock):
    gate = Gate(Limits(concurrency=8), steady=clock.steady)
    clock.advance(1.0)
    gate.note_overload(Place(entered_at=1.0, taken=None))  # type: ignore[arg-type]
    seen = [gate.allowed]
    for _ in range(40):
        gate.note_answer()
        seen.append(gate.allowed)

    assert sorted(seen) == seen
    assert (4, 4, 5) == (seen[0], seen[3], seen[5])
    assert (8, 8) == (max(seen), seen[-1])


def test_who_is_cancelled_while_waiting_leaves_no_gap(clock):
    gate = Gate(Limits(concurrency=2), steady=clock.steady)

    async def go() -> None:
        async with gate.place(tokens=1):
            await asyncio.sleep(10.0)

    async def many() -> None:
        tasks = [asyncio.create_task(go()) for _ in range(8)]
        await asyncio.sleep(1.0)
        for task in tasks[2:6]:
            task.cancel()
        # Also one that is inside, and one in the moment in which it is let in.
        tasks[0].cancel()
        await asyncio.sleep(0)
        tasks[6].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert 0 == gate._num_inside
        await asyncio.wait_for(asyncio.gather(go(), go()), timeout=11.0)

    run(many(), clock)


@settings(max_examples=60)
@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.none() | st.sampled_from([0.0, 0.5, 1.0, 2.0])),
        max_size=14,
    ),
)
def test_whoever_is_cancelled_whenever_no_place_is_lost_or_made(concurrency, requests):
    clock = FakeClock()
    crowd = Crowd(Limits(concurrency=concurrency), clock)

    async def cancelled_later(task: asyncio.Task[None], seconds: float) -> None:
        await asyncio.sleep(seconds)
        task.cancel()

    async def many() -> None:
        tasks = [asyncio.create_task(crowd.go(seconds=seconds)) for seconds, _ in requests]
        stops = [
            asyncio.create_task(cancelled_later(task, at))
            for task, (_, at) in zip(tasks, requests, strict=True)
            if at is not None
        ]
        await asyncio.gather(*tasks, *stops, return_exceptions=True)

    run(many(), clock)
    assert 0 == crowd.gate._num_inside
    assert crowd.most_inside <= concurrency


def test_an_error_inside_gives_the_place_back(clock):
    gate = Gate(Limits(concurrency=1), steady=clock.steady)

    async def breaks() -> None:
        async with gate.place(tokens=1):
            raise ValueError("no")

    async def many() -> None:
        for _ in range(3):
            with pytest.raises(ValueError, match="no"):
                await breaks()

    run(many(), clock)
    assert 0 == gate._num_inside


def most_within_a_minute(moments: list[float], amounts: list[int]) -> int:
    return max(
        sum(amount for at, amount in zip(moments, amounts, strict=True) if start <= at < start + 60.0)
        for start in moments
    )


def test_never_more_requests_within_any_minute_than_allowed(clock):
    crowd = Crowd(Limits(concurrency=100, requests_per_minute=5), clock)

    async def many() -> None:
        await asyncio.gather(*(crowd.go(seconds=0.1) for _ in range(17)))

    run(many(), clock)
    assert 5 == most_within_a_minute(crowd.entered_at, [1] * 17)
    assert [0.0] * 5 + [60.0] * 5 + [120.0] * 5 + [180.0] * 2 == [round(at, 2) for at in sorted(crowd.entered_at)]


@settings(max_examples=60)
@given(st.integers(1, 50), st.lists(st.tuples(st.floats(0.0, 90.0), st.integers(1, 50)), min_size=1, max_size=12))
def test_never_more_tokens_within_any_minute_than_allowed_unless_one_request_has_them_alone(most, requests):
    clock = FakeClock()
    gate = Gate(Limits(concurrency=100, tokens_per_minute=most), steady=clock.steady)
    taken: list[tuple[float, int]] = []

    async def go(after: float, tokens: int) -> None:
        await asyncio.sleep(after)
        async with gate.place(tokens=tokens):
            taken.append((clock.steady(), tokens))

    async def many() -> None:
        await asyncio.gather(*(go(after, tokens) for after, tokens in requests))

    run(many(), clock)
    assert len(requests) == len(taken)
    for start, _ in taken:
        # A hair less than a minute: sums of floats.
        within = [tokens for at, tokens in taken if start <= at < start + 60.0 - 1e-6]
        assert sum(within) <= most or len(within) == 1


def test_the_true_number_of_tokens_takes_the_place_of_the_estimate(clock):
    crowd = Crowd(Limits(concurrency=100, tokens_per_minute=100), clock)

    async def many() -> None:
        await crowd.go(tokens=90, used=10)
        await crowd.go(tokens=90, used=90)
        await crowd.go(tokens=50)

    run(many(), clock)
    # The second one fits since the first had only 10; the third waits until the second is a minute old.
    assert [0.0, 1.0, 61.0] == [round(at, 2) for at in crowd.entered_at]


def test_who_is_cancelled_while_waiting_for_the_minute_holds_up_nobody(clock):
    crowd = Crowd(Limits(concurrency=10, requests_per_minute=1), clock)

    async def many() -> None:
        await crowd.go()
        waiting = [asyncio.create_task(crowd.go()) for _ in range(2)]
        await asyncio.sleep(1.0)
        waiting[0].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    run(many(), clock)
    assert [0.0, 60.0] == [round(at, 2) for at in crowd.entered_at]
    assert 0 == crowd.gate._num_inside


def test_without_limits_nobody_waits(clock):
    crowd = Crowd(Limits(concurrency=1000), clock)

    async def many() -> None:
        await asyncio.gather(*(crowd.go(tokens=10**9) for _ in range(200)))

    run(many(), clock)
    assert [0.0] * 200 == crowd.entered_at


def test_limits_that_change_hold_from_then_on(clock):
    crowd = Crowd(Limits(concurrency=2, requests_per_minute=1000), clock)

    async def many() -> None:
        going = asyncio.gather(*(crowd.go(seconds=1.0) for _ in range(18)))
        await asyncio.sleep(1.5)
        assert 2 == crowd.most_inside
        crowd.gate.change(Limits(concurrency=4, requests_per_minute=1000))
        await asyncio.sleep(1.0)
        assert 4 == crowd.most_inside == crowd.gate.allowed
        crowd.gate.change(Limits(concurrency=1, requests_per_minute=1000))
        await asyncio.sleep(1.5)
        assert 1 == crowd.num_inside
        await going

    run(many(), clock)


def test_a_lower_rate_holds_from_then_on(clock):
    crowd = Crowd(Limits(concurrency=9, requests_per_minute=6), clock)

    async def many() -> None:
        await asyncio.gather(*(crowd.go(seconds=0.0) for _ in range(4)))
        crowd.gate.change(Limits(concurrency=9, requests_per_minute=2))
        await asyncio.gather(*(crowd.go(seconds=0.0) for _ in range(4)))

    run(many(), clock)
    begun = crowd.entered_at[0]
    assert [0, 0, 0, 0, 60, 60, 120, 120] == [round(at - begun) for at in crowd.entered_at]


def test_what_an_overload_has_lowered_stays_low_in_proportion(clock):
    crowd = Crowd(Limits(concurrency=8), clock)

    async def overload() -> None:
        await crowd.go(overload=True)
        assert 4 == crowd.gate.allowed
        crowd.gate.change(Limits(concurrency=4))

    run(overload(), clock)
    assert 2 == crowd.gate.allowed
