"""Where in the data of the uninterrupted run a resumed one goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, chain, pairwise

from crashproof.rules.proof.observations import Difference, StepSeen

__all__ = ["DataStream", "Place"]

_STEPS_TO_MATCH = 3


class Place(StrEnum):
    """Where the batch of a resumed run stands in the uninterrupted one's data."""

    WITHIN_THE_STEP = "within the step"
    A_STEP_BACK = "a step back"
    A_STEP_AHEAD = "a step ahead"
    BEGINNING_OF_AN_EPOCH = "beginning of an epoch"
    SAME_PLACE_OF_ANOTHER_EPOCH = "same place of another epoch"
    ELSEWHERE = "elsewhere"
    NOWHERE = "nowhere"


@dataclass(frozen=True, slots=True)
class DataStream:
    """The samples of the uninterrupted run, one after the other."""

    samples: tuple[str, ...]
    starts: dict[int, int]
    """The place of the first sample of each step."""
    epoch_starts: tuple[int, ...]
    """The places of the first samples of the epochs, as far as they can be told; the first is 0."""

    @classmethod
    def of(cls, steps: Sequence[StepSeen]) -> DataStream:
        """The stream of a run; empty unless every step has shown its batch."""
        batches = [each.samples for each in steps if each.samples is not None]
        if len(batches) < len(steps):
            return cls((), {}, (0,))
        ends = list(accumulate((len(each) for each in batches), initial=0))
        samples = tuple(chain.from_iterable(batches))
        return cls(samples, {each.step: ends[place] for place, each in enumerate(steps)}, _epoch_starts(samples))

    def begins_epoch(self, step: int) -> bool:
        """Whether a step takes the first samples of an epoch; of the first epoch that is known for certain."""
        return self.starts.get(step) in self.epoch_starts

    def epoch_of(self, step: int) -> int:
        """The number of the epoch that a step begins in, from 0."""
        place = self.starts.get(step, 0)
        return sum(start <= place for start in self.epoch_starts) - 1

    def place_of(self, difference: Difference) -> Place:
        """Where the batch of a differing step stands in these data."""
        expected = self.starts.get(difference.step)
        if expected is None or not difference.found.samples:
            return Place.NOWHERE
        found = {self._place_at(each, expected, difference) for each in self._occurrences(difference)}
        return next((place for place in Place if place in found), Place.NOWHERE)

    def _occurrences(self, difference: Difference) -> list[int]:
        """Where the samples of the differing step and of the steps behind it stand, or at least those of it."""
        of_life = [each.samples for each in difference.life.steps if each.step >= difference.step]
        for num_steps in range(_STEPS_TO_MATCH, 0, -1):
            wanted = tuple(chain.from_iterable(each or () for each in of_life[:num_steps]))
            places = [
                place
                for place, sample in enumerate(self.samples)
                if sample == wanted[0] and self.samples[place : place + len(wanted)] == wanted
            ]
            if places:
                return places
        return []

    def _place_at(self, found: int, expected: int, difference: Difference) -> Place:
        starts, step = self.starts, difference.step
        if abs(found - expected) < len(difference.expected.samples or ()):
            return Place.WITHIN_THE_STEP
        if found == starts.get(step - 1):
            return Place.A_STEP_BACK
        if found == starts.get(step + 1):
            return Place.A_STEP_AHEAD
        if self._in_epoch(found) == self._in_epoch(expected):
            return Place.SAME_PLACE_OF_ANOTHER_EPOCH
        return Place.ELSEWHERE if self._in_epoch(found) else Place.BEGINNING_OF_AN_EPOCH

    def _in_epoch(self, place: int) -> int:
        return place - max(start for start in self.epoch_starts if start <= place)


def _epoch_starts(samples: Sequence[str]) -> tuple[int, ...]:
    """An epoch ends where a sample of it comes again; only the first is known if they are of several lengths."""
    starts, seen = [0], set[str]()
    for place, sample in enumerate(samples):
        if sample in seen:
            starts.append(place)
            seen.clear()
        seen.add(sample)
    lengths = {end - start for start, end in pairwise(starts)}
    return tuple(starts) if len(lengths) <= 1 else (0,)
