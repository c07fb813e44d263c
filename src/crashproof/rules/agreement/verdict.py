"""Whether processes may join, from what each reports of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from msgspec import Struct

from crashproof.rules.agreement.differences import RankNames, differences

__all__ = ["Finding", "Report", "Verdict", "as_sentence", "verdict_on"]

_MOST_NAMED = 10


class Finding(StrEnum):
    """What the reports of all processes show."""

    AGREED = "agreed"
    DIFFERENT = "different"
    FAILED = "failed"
    MISSING = "missing"


class Report(Struct, frozen=True, kw_only=True):
    """What one process says of itself."""

    host: str
    description: dict[str, str] = {}
    """By name, such as `train.steps`, in the order in which differences are named."""
    failure: str = ""
    """Why it cannot start; empty if it can."""
    may_pass: bool = False
    """Whether the failure may be gone at the next start."""


class Verdict(Struct, frozen=True, kw_only=True):
    """The same for all processes."""

    finding: Finding
    words: str = ""
    """What differs, or why a process cannot start."""
    ranks: list[int] = []
    """Those that cannot start, or have not arrived."""
    may_pass: bool = False
    """Whether the next start may succeed without a change."""


def verdict_on(reports: Mapping[int, Report], *, num_ranks: int) -> Verdict:
    """Judge the reports by rank; one failure decides, whoever else has not arrived."""
    failed = sorted(rank for rank, report in reports.items() if report.failure)
    if failed:
        first = reports[failed[0]]
        return Verdict(finding=Finding.FAILED, words=first.failure, ranks=failed, may_pass=first.may_pass)
    missing = [rank for rank in range(num_ranks) if rank not in reports]
    if missing:
        return Verdict(finding=Finding.MISSING, ranks=missing, may_pass=True)
    in_order = [reports[rank] for rank in range(num_ranks)]
    sentence = as_sentence([each.description for each in in_order], [each.host for each in in_order])
    return Verdict(finding=Finding.DIFFERENT if sentence else Finding.AGREED, words=sentence)


def as_sentence(descriptions: Sequence[Mapping[str, str]], hosts: Sequence[str]) -> str:
    """The differences between all ranks, separated by semicolons; empty if there are none."""
    found, names = differences(descriptions), RankNames(hosts=hosts)
    more = f"; and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return "; ".join(each.in_words(names) for each in found[:_MOST_NAMED]) + more
