"""Step times of runs of many kinds, replayed through a session."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from crashproof.records.session import PacePoint
from crashproof.rules.pace import add_pace_point, is_pace_point_due
from crashproof.rules.time_left.estimate import Estimate, estimate_remaining

LOOKS = (0.10, 0.25, 0.5, 0.6, 0.75, 0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """How long the steps of a run take."""

    name: str
    step_seconds: Callable[[random.Random, int], list[float]]
    """All of a run of that many updates."""
    length: int = 4000
    steps_a_update: int = 1
    unknowable_until: float = 0.0
    """Up to this share of the run, the pace has yet to change, or has changed a twentieth of the run ago."""
    chance: float = 0.05
    """By how much the truth itself may differ from what can be expected, as chance decides on the steps to come."""


def steps(mean: Callable[[float], float], *, noise: float = 0.05, stalls: Callable[[int, int], float] | None = None):
    def seconds(chance: random.Random, length: int) -> list[float]:
        return [
            mean(number / length) * max(0.1, chance.gauss(1.0, noise)) + (stalls(number, length) if stalls else 0.0)
            for number in range(1, length + 1)
        ]

    return seconds


def every(*pairs: tuple[int, float]) -> Callable[[int, int], float]:
    return lambda number, _: sum(seconds for period, seconds in pairs if number % period == 0)


def epochs(count: int, seconds: float) -> Callable[[int, int], float]:
    return lambda number, length: seconds if number % (length // count) == 0 else 0.0


def compiled(slow_steps: int, factor: float):
    def seconds(chance: random.Random, length: int) -> list[float]:
        return [chance.gauss(1.0, 0.05) * (factor if number < slow_steps else 1.0) for number in range(length)]

    return seconds


def random_stalls(chance: random.Random, length: int) -> list[float]:
    return [chance.gauss(1.0, 0.05) + (20.0 if chance.random() < 0.02 else 0.0) for _ in range(length)]


def bursty(chance: random.Random, length: int) -> list[float]:
    """Answers of a teacher's API: many at once, then a wait."""
    return [chance.expovariate(1.0) * (8.0 if number % 16 == 0 else 0.2) for number in range(length)]


def heavy(chance: random.Random, length: int) -> list[float]:
    return [0.5 + 0.5 * chance.lognormvariate(0.0, 1.0) for _ in range(length)]


def half_after(share: float, factor: float) -> Callable[[float], float]:
    return lambda done: 1.0 if done <= share else factor


SAVES = every((50, 5.0), (200, 30.0))
TRACES = [
    Trace(name="steady", step_seconds=steps(lambda _: 1.0)),
    Trace(name="regular stalls: saves and evaluations", step_seconds=steps(lambda _: 1.0, stalls=SAVES)),
    Trace(
        name="an evaluation at the end of each of 20 epochs",
        step_seconds=steps(lambda _: 1.0, stalls=epochs(20, 40.0)),
    ),
    Trace(
        name="an evaluation at the end of each of 8 epochs",
        step_seconds=steps(lambda _: 1.0, stalls=epochs(8, 100.0)),
        unknowable_until=0.3,
    ),
    Trace(name="stalls at random", step_seconds=random_stalls, chance=0.4),
    Trace(name="slow start: compilation", step_seconds=compiled(20, 60.0)),
    Trace(name="slow start: 2 % of the steps at five times the time", step_seconds=compiled(80, 5.0)),
    Trace(name="half as fast from the middle on", step_seconds=steps(half_after(0.5, 2.0)), unknowable_until=0.6),
    Trace(
        name="half as fast from the middle on, with saves",
        step_seconds=steps(half_after(0.5, 2.0), stalls=SAVES),
        unknowable_until=0.6,
    ),
    Trace(name="half as fast from seven tenths on", step_seconds=steps(half_after(0.7, 2.0)), unknowable_until=0.75),
    Trace(name="twice as fast from four tenths on", step_seconds=steps(half_after(0.4, 0.5)), unknowable_until=0.5),
    Trace(name="slower and slower: growing sequences", step_seconds=steps(lambda done: 1.0 + done)),
    Trace(name="a little slower all the time", step_seconds=steps(lambda done: 1.0 + 0.2 * done), chance=0.12),
    Trace(name="bursts of answers", step_seconds=bursty, chance=0.5),
    Trace(name="heavy-tailed steps", step_seconds=heavy, chance=0.25),
    Trace(name="20 steps", step_seconds=steps(lambda _: 1.0), length=20, chance=0.12),
    Trace(
        name="20 steps, the second compiles",
        step_seconds=lambda chance, n: [30.0, *(chance.gauss(1.0, 0.02) for _ in range(n - 1))],
        length=20,
    ),
    Trace(
        name="ten million steps, weeks",
        step_seconds=steps(lambda _: 300.0, stalls=every((500, 3000.0))),
        length=10_000,
        steps_a_update=1000,
    ),
]


def estimates(trace: Trace, seed: int) -> Iterator[tuple[float, float, Estimate | None]]:
    """At each look: the share of the run, the seconds that truly remain, and the estimate."""
    seconds = trace.step_seconds(random.Random(f"{trace.name}{seed}"), trace.length)
    points = [PacePoint(0.0, 0)]
    total, now, looks = sum(seconds), 0.0, {max(1, round(share * trace.length)): share for share in LOOKS}
    for number, each in enumerate(seconds, start=1):
        now += each
        if is_pace_point_due(points, now):
            add_pace_point(points, PacePoint(now, number * trace.steps_a_update))
        if number in looks:
            remaining = (trace.length - number) * trace.steps_a_update
            yield (
                looks[number],
                total - now,
                estimate_remaining([*points, PacePoint(now, number * trace.steps_a_update)], remaining),
            )
