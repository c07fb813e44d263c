"""What differs between the processes of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from crashproof.rules.secrets.placeholder import without_digests

__all__ = ["Difference", "RankNames", "differences"]

_ABSENT = "(absent)"
_MOST_VALUES = 3
_MOST_CHARACTERS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class RankNames:
    """How ranks are named in messages."""

    hosts: Sequence[str]
    """The host of each rank."""

    def of(self, ranks: Sequence[int]) -> str:
        """`rank 1 (host-b)`, `ranks 0-3, 5`; hosts are named if there are several, and the ranks are of one."""
        noun = "rank" if len(ranks) == 1 else "ranks"
        hosts = {self.hosts[rank] for rank in ranks}
        where = f" ({hosts.pop()})" if len(set(self.hosts)) > 1 and len(hosts) == 1 else ""
        return f"{noun} {', '.join(_spans(ranks))}{where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One name whose values differ."""

    name: str
    values: Mapping[str, tuple[int, ...]]
    """The ranks of each value, the rarest value first."""

    def in_words(self, names: RankNames) -> str:
        """`train.seed: 1 on rank 1, 0 on ranks 0, 2-7`; secrets are hidden."""
        shown = [(_shown(value), ranks) for value, ranks in self.values.items()]
        if len({value for value, _ in shown}) < len(shown):
            odd = " and ".join(names.of(ranks) for _, ranks in shown[:_MOST_VALUES])
            return f"{self.name}: differs between {odd} (hidden)"
        said = ", ".join(f"{value} on {names.of(ranks)}" for value, ranks in shown[:_MOST_VALUES])
        num_more = len(shown) - _MOST_VALUES
        return f"{self.name}: {said}{f' and {num_more} other value(s)' if num_more > 0 else ''}"


def differences(descriptions: Sequence[Mapping[str, str]]) -> list[Difference]:
    """The names whose values are not the same in the descriptions of all ranks, in the order of the names.

    What a description does not name is `(absent)`.
    """
    names = dict.fromkeys(name for each in descriptions for name in each)
    found = ((name, [each.get(name, _ABSENT) for each in descriptions]) for name in names)
    return [Difference(name=name, values=_ranks_by_value(values)) for name, values in found if len(set(values)) > 1]


def _ranks_by_value(values: Sequence[str]) -> dict[str, tuple[int, ...]]:
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return {value: tuple(each) for value, each in sorted(ranks.items(), key=lambda pair: (len(pair[1]), pair[1]))}


def _spans(ranks: Sequence[int]) -> Iterator[str]:
    """`0-3`, `5`: consecutive ranks together."""
    for _, span in groupby(enumerate(ranks), key=lambda pair: pair[1] - pair[0]):
        first, *others = [rank for _, rank in span]
        yield f"{first}-{others[-1]}" if others else str(first)


def _shown(value: str) -> str:
    text = without_digests(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 20]}…{text[-19:]}"
