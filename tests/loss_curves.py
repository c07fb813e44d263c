"""Losses of runs in twenty-odd shapes, with the verdicts that are right for them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from crashproof.records.session import LossBucket
from crashproof.rules.loss.buckets import BUCKET_UPDATES, add_bucket
from crashproof.rules.loss.windows import LossHistory

IMPROVING, PLATEAU, DIVERGING = frozenset({"improving"}), frozenset({"plateau"}), frozenset({"diverging"})
UNSTABLE, NON_FINITE = frozenset({"unstable"}), frozenset({"non_finite"})
CALM = IMPROVING | PLATEAU
NO_ALARM = CALM | UNSTABLE | {"unknown"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a loss runs, and what is to be said of it."""

    name: str
    curve: Callable[[random.Random, int], list[float]]
    """All losses of a run of that many steps."""
    right: tuple[tuple[float, frozenset[str]], ...]
    """From which share of the run on which verdicts are right."""
    length: int = 5000
    onset: float | None = None
    """The share of the run at which it begins to diverge."""
    late: float = 0.15
    """The share of the steps up to the onset within which this has to be noticed."""


def level(value: Callable[[float], float], noise: Callable[[random.Random, float], float]):
    """A curve of the share of the run, with noise of the level."""

    def losses(chance: random.Random, length: int) -> list[float]:
        values = [value((step + 1) / length) for step in range(length)]
        return [each + noise(chance, each) for each in values]

    return losses


def gauss(sigma: float):
    return lambda chance, _: chance.gauss(0.0, sigma)


def relative(sigma: float):
    return lambda chance, now: now * chance.gauss(0.0, sigma)


def heavy(sigma: float):
    """Student's t with two degrees of freedom."""
    return lambda chance, _: sigma * chance.gauss(0, 1) / math.sqrt((chance.expovariate(0.5)) / 2)


def lognormal(sigma: float):
    return lambda chance, now: now * (math.exp(chance.gauss(0.0, sigma)) - 1.0)


def power(start: float, exponent: float, floor: float = 0.0, steps: int = 5000):
    return lambda share: floor + start * (share * steps) ** -exponent


def decay(top: float, floor: float, share_constant: float):
    return lambda share: floor + (top - floor) * math.exp(-share / share_constant)


def schedule(share: float) -> float:
    drops = ((0.0, 2.0), (0.5, 1.2), (0.75, 0.9))
    value, previous = 4.6, 4.6
    for at, to in drops:
        if share >= at:
            value = to + (previous - to) * math.exp(-(share - at) / 0.02)
            previous = to
    return value


def spiked(base, noise, *, every: float, height: float, lasts: int):
    smooth = level(base, noise)

    def losses(chance: random.Random, length: int) -> list[float]:
        values = smooth(chance, length)
        extra = 0.0
        for place in range(length):
            if chance.random() < every:
                extra = height * values[place]
            values[place] += extra
            extra *= math.exp(-1.0 / lasts)
        return values

    return losses


def warm_up(share: float) -> float:
    if share < 0.05:
        return 2.3 + 0.7 * share / 0.05
    return 1.0 + 2.0 * ((share - 0.03) / 0.02) ** -0.4


def restarts(cycles: float, bump: float):
    def value(share: float) -> float:
        phase = share * cycles % 1.0
        base = 0.8 + 2.0 * (1 + 20 * share) ** -0.5
        # The learning rate jumps up within a fiftieth of a cycle, and falls like a cosine.
        rate = phase / 0.02 if phase < 0.02 else 0.5 + 0.5 * math.cos(math.pi * (phase - 0.02) / 0.98)
        return base + bump * rate * (0.0 if share * cycles < 1 else 1.0)

    return value


def doubling_restarts(share: float) -> float:
    start, size = 0.0, 1 / 31
    while share >= start + size:
        start, size = start + size, 2 * size
    phase = (share - start) / size
    rate = phase / 0.02 if phase < 0.02 else 0.5 + 0.5 * math.cos(math.pi * (phase - 0.02) / 0.98)
    return 0.8 + 2.0 * (1 + 20 * share) ** -0.5 + (0.5 * rate if start else 0.0)


def grokking(share: float) -> float:
    return 0.05 + 2.0 / (1 + math.exp((share - 0.7) / 0.02))


def wandering(center: float, size: float, memory: int):
    """A flat loss that wanders, as a GAN's does."""

    def losses(chance: random.Random, length: int) -> list[float]:
        values, offset, keep = [], 0.0, math.exp(-1.0 / memory)
        for _ in range(length):
            offset = keep * offset + math.sqrt(1 - keep**2) * chance.gauss(0, size)
            values.append(center + offset + chance.gauss(0, size))
        return values

    return losses


def growing_noise(chance: random.Random, length: int) -> list[float]:
    return [2.0 + chance.gauss(0.0, 0.02 * (1 + 30 * max(0.0, place / length - 0.5) ** 1)) for place in range(length)]


def burst_of_noise(chance: random.Random, length: int) -> list[float]:
    return [2.0 + chance.gauss(0.0, 0.02 if place < length * 0.6 else 0.4) for place in range(length)]


def random_spikes(chance: random.Random, length: int) -> list[float]:
    return [2.0 + chance.gauss(0, 0.02) + (3.0 if chance.random() < 0.09 else 0.0) for _ in range(length)]


def blow_up(onset: float, length_share: float, base=2.0, noise: float = 0.05):
    """Exponential growth from an onset on; it doubles within a share of the run."""

    def losses(chance: random.Random, length: int) -> list[float]:
        values = []
        for place in range(length):
            share = place / length
            grown = base * (2 ** min(60.0, (share - onset) / length_share) - 1) if share > onset else 0.0
            now = 1.5 + decay(3.0, base - 1.5, 0.1)(share) + grown
            values.append(now + now * chance.gauss(0, noise))
        return values

    return losses


def collapse(chance: random.Random, length: int) -> list[float]:
    """Within twenty steps to a level far above, where it stays."""
    begin = int(length * 0.6)
    return [
        (decay(6.0, 2.0, 0.1)(place / length) if place < begin else min(10.8, 2.0 + 0.44 * (place - begin)))
        + chance.gauss(0, 0.05)
        for place in range(length)
    ]


def with_nan_tail(chance: random.Random, length: int) -> list[float]:
    values = level(power(5.0, 0.15), gauss(0.05))(chance, length)
    begin = int(length * 0.7)
    return values[:begin] + [math.nan] * (length - begin)


def few_nan(chance: random.Random, length: int) -> list[float]:
    values = level(power(5.0, 0.15), gauss(0.05))(chance, length)
    return [math.nan if chance.random() < 0.02 and place % 7 else each for place, each in enumerate(values)]


def alternating(period: int, size: float, base):
    def losses(chance: random.Random, length: int) -> list[float]:
        pattern = [chance.uniform(-size, size) for _ in range(period)]
        return [
            base((place + 1) / length) + pattern[place % period] + chance.gauss(0, size / 30)
            for place in range(length)
        ]

    return losses


def sawtooth(base, size: float, cycles: int):
    """Per-epoch drops of a memorizing model."""
    return lambda share: base(share) + size * (share * cycles % 1.0)


def u_shape(share: float) -> float:
    return 2.0 + 2.0 * math.exp(-share / 0.08) + max(0.0, share - 0.5) * 1.2


ALWAYS = 0.02
SHAPES = [
    Shape(name="power law, exponent 0.05", curve=level(power(5.0, 0.05), relative(0.03)), right=((0.1, IMPROVING),)),
    Shape(name="power law, exponent 0.1", curve=level(power(5.0, 0.1), relative(0.05)), right=((0.06, IMPROVING),)),
    Shape(name="power law, exponent 0.3", curve=level(power(8.0, 0.3), relative(0.1)), right=((0.04, IMPROVING),)),
    Shape(name="power law, exponent 0.7", curve=level(power(8.0, 0.7), relative(0.1)), right=((0.04, IMPROVING),)),
    Shape(
        name="straight noisy fall, 2.2 to 1.4",
        curve=level(lambda share: 2.2 - 0.8 * share, gauss(0.3)),
        right=((0.2, IMPROVING),),
    ),
    Shape(
        name="slow rise, 2.5 to 3.0",
        curve=level(lambda share: 2.5 + 0.5 * share, gauss(0.2)),
        right=((0.4, DIVERGING),),
    ),
    Shape(
        name="steps of a schedule",
        curve=level(schedule, gauss(0.05)),
        right=(
            (0.03, IMPROVING),
            (0.16, CALM),
            (0.3, PLATEAU),
            (0.5, CALM),
            (0.515, IMPROVING),
            (0.6, CALM),
            (0.755, CALM),
            (0.765, IMPROVING),
            (0.85, CALM),
        ),
    ),
    Shape(
        name="spikes that recover",
        curve=spiked(power(5.0, 0.15), relative(0.03), every=0.001, height=1.5, lasts=15),
        right=((0.06, CALM | UNSTABLE), (0.1, IMPROVING | UNSTABLE)),
    ),
    Shape(
        name="tall spikes that recover slowly",
        curve=spiked(power(5.0, 0.15), relative(0.03), every=0.0006, height=4.0, lasts=60),
        right=((0.06, NO_ALARM),),
    ),
    Shape(
        name="warm-up: rises, then falls",
        curve=level(warm_up, gauss(0.08)),
        right=((ALWAYS, NO_ALARM), (0.15, IMPROVING)),
    ),
    Shape(name="cosine with six restarts", curve=level(restarts(6, 0.4), gauss(0.05)), right=((ALWAYS, NO_ALARM),)),
    Shape(
        name="cosine with thirty restarts", curve=level(restarts(30, 0.3), gauss(0.05)), right=((ALWAYS, NO_ALARM),)
    ),
    Shape(
        name="restarts, each cycle twice as long",
        curve=level(doubling_restarts, gauss(0.05)),
        right=((ALWAYS, NO_ALARM),),
    ),
    Shape(
        name="oscillation around a level",
        curve=level(lambda share: 2.0 + 0.3 * math.sin(40 * math.pi * share), gauss(0.05)),
        right=((0.15, PLATEAU),),
    ),
    Shape(
        name="slow oscillation around a level",
        curve=level(lambda share: 2.0 + 0.3 * math.sin(16 * math.pi * share), gauss(0.05)),
        right=((0.3, CALM), (0.5, PLATEAU)),
    ),
    Shape(name="tiny losses, 1e-6", curve=level(power(5e-6, 0.2), relative(0.1)), right=((0.06, IMPROVING),)),
    Shape(name="large losses, 1e4", curve=level(power(5e4, 0.2), relative(0.1)), right=((0.06, IMPROVING),)),
    Shape(
        name="growing noise", curve=growing_noise, right=((0.1, PLATEAU), (0.5, PLATEAU | UNSTABLE), (0.9, UNSTABLE))
    ),
    Shape(
        name="noise that begins at once",
        curve=burst_of_noise,
        right=((0.1, PLATEAU), (0.6, PLATEAU | UNSTABLE), (0.7, UNSTABLE), (0.85, CALM | UNSTABLE)),
    ),
    Shape(name="heavy tails", curve=level(power(5.0, 0.1), heavy(0.1)), right=((0.08, IMPROVING),)),
    Shape(name="heavy tails, flat", curve=level(lambda _: 2.0, heavy(0.1)), right=((0.05, PLATEAU),)),
    Shape(name="multiplicative noise", curve=level(power(5.0, 0.15), lognormal(0.3)), right=((0.15, IMPROVING),)),
    Shape(
        name="noise that shrinks with the level",
        curve=level(decay(5.0, 0.5, 0.3), relative(0.2)),
        right=((0.05, IMPROVING),),
    ),
    Shape(
        name="diverges fast",
        curve=blow_up(0.6, 0.004),
        right=((0.1, CALM), (0.6, CALM | DIVERGING), (0.63, DIVERGING)),
        onset=0.6,
        late=0.05,
    ),
    Shape(
        name="diverges at half speed",
        curve=blow_up(0.6, 0.05),
        right=((0.1, CALM), (0.6, CALM | DIVERGING), (0.66, DIVERGING)),
        onset=0.6,
        late=0.1,
    ),
    Shape(
        name="diverges slowly",
        curve=blow_up(0.5, 0.5),
        right=((0.1, CALM), (0.5, CALM | DIVERGING), (0.65, DIVERGING)),
        onset=0.5,
        late=0.3,
    ),
    Shape(
        name="falls, then rises slowly",
        curve=level(u_shape, gauss(0.1)),
        right=((0.1, CALM), (0.5, CALM | DIVERGING), (0.65, DIVERGING)),
        onset=0.5,
        late=0.3,
    ),
    Shape(
        name="collapses to a level far above",
        curve=collapse,
        right=((0.1, CALM), (0.6, CALM | DIVERGING | UNSTABLE), (0.63, DIVERGING), (0.7, NO_ALARM | DIVERGING)),
        onset=0.6,
        late=0.05,
    ),
    Shape(
        name="ends in NaN",
        curve=with_nan_tail,
        right=((0.06, IMPROVING), (0.7, IMPROVING | NON_FINITE), (0.705, NON_FINITE)),
    ),
    Shape(name="now and then a NaN", curve=few_nan, right=((0.1, IMPROVING | NON_FINITE),)),
    Shape(
        name="negative losses, falling",
        curve=level(lambda share: -3.0 - 2.0 * share, gauss(0.5)),
        right=((0.2, IMPROVING),),
    ),
    Shape(
        name="negative losses, rising",
        curve=level(lambda share: -5.0 + 2.0 * share, gauss(0.5)),
        right=((0.4, DIVERGING),),
    ),
    Shape(
        name="crosses zero, falling",
        curve=level(lambda share: 1.0 - 2.0 * share, gauss(0.3)),
        right=((0.15, IMPROVING),),
    ),
    Shape(name="flat around zero", curve=level(lambda _: 0.0, gauss(0.3)), right=((0.05, PLATEAU),)),
    Shape(name="a GAN's: flat, noisy, wandering", curve=wandering(1.0, 0.2, 30), right=((0.1, CALM), (0.3, PLATEAU))),
    Shape(
        name="grokking: long plateau, then a fall",
        curve=level(grokking, relative(0.05)),
        right=((0.1, PLATEAU), (0.6, CALM), (0.72, IMPROVING), (0.85, CALM)),
    ),
    Shape(
        name="fell, then flat",
        curve=level(decay(5.0, 1.0, 0.03), gauss(0.05)),
        right=((0.03, IMPROVING), (0.12, CALM), (0.4, PLATEAU)),
    ),
    Shape(
        name="at a floor, without noise",
        curve=level(decay(2.5, 0.5, 0.01), gauss(0.0)),
        right=((0.01, IMPROVING), (0.1, CALM), (0.3, PLATEAU)),
    ),
    Shape(name="flat", curve=level(lambda _: 2.0, gauss(0.1)), right=((0.02, PLATEAU),)),
    Shape(name="constant", curve=level(lambda _: 2.0, gauss(0.0)), right=((0.02, PLATEAU),)),
    Shape(
        name="difficulty alternates, period 2", curve=alternating(2, 0.5, power(5.0, 0.2)), right=((0.1, IMPROVING),)
    ),
    Shape(
        name="difficulty alternates, period 37",
        curve=alternating(37, 0.5, power(5.0, 0.2)),
        right=((0.1, IMPROVING),),
    ),
    Shape(name="difficulty alternates, flat", curve=alternating(10, 0.5, lambda _: 2.0), right=((0.1, PLATEAU),)),
    Shape(
        name="rises within each epoch",
        curve=level(sawtooth(power(5.0, 0.3), 0.1, 20), gauss(0.05)),
        right=((0.15, NO_ALARM),),
    ),
    Shape(name="frequent irregular spikes", curve=random_spikes, right=((0.1, UNSTABLE | PLATEAU),)),
    Shape(
        name="100 steps that fall, no noise",
        curve=lambda chance, n: [0.81**s * 100 for s in range(1, n + 1)],
        right=((0.08, IMPROVING),),
        length=100,
    ),
    Shape(
        name="30 steps that fall, no noise",
        curve=lambda chance, n: [1.0 / s for s in range(1, n + 1)],
        right=((0.26, IMPROVING),),
        length=30,
    ),
    Shape(
        name="20 steps that rise, no noise",
        curve=lambda chance, n: [1.0 + 0.1 * s for s in range(1, n + 1)],
        right=((0.8, DIVERGING),),
        length=20,
    ),
]


class FollowedLosses:
    """The losses of a run, as its session keeps them."""

    def __init__(self) -> None:
        self.recent: list[float] = []
        self.buckets: list[LossBucket] = []
        self.num_open = 0
        self.num_updates = 0

    def add(self, loss: float) -> None:
        self.num_updates += 1
        self.recent.append(loss)
        self.num_open += 1
        if self.num_open == BUCKET_UPDATES:
            add_bucket(self.buckets, self.recent[-BUCKET_UPDATES:], self.num_updates)
            self.num_open = 0
        if len(self.recent) > 1000:
            del self.recent[0]

    def history(self) -> LossHistory:
        return LossHistory(self.recent, self.buckets, num_open=self.num_open)


def looks(shape: Shape, seed: int, num_looks: int) -> Iterator[tuple[int, FollowedLosses]]:
    """The losses of one run at evenly spaced moments, with the steps done."""
    losses = shape.curve(random.Random(f"{shape.name}{seed}"), shape.length)
    followed, at = FollowedLosses(), 0
    for number in range(1, num_looks + 1):
        until = shape.length * number // num_looks
        for loss in losses[at:until]:
            followed.add(loss)
        at = until
        yield until, followed


def right_verdicts(shape: Shape, share: float) -> frozenset[str] | None:
    """What may be said at a share of the run; None: anything."""
    found = [verdicts for begin, verdicts in shape.right if share >= begin]
    return found[-1] if found else None
