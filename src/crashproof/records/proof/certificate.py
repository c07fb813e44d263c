"""The certificate of a proof, as it is written and printed."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Certificate", "DifferingValue", "KillDone", "Problem"]


class DifferingValue(Struct, frozen=True, kw_only=True):
    """A value that is not the same."""

    name: str
    expected: str
    found: str


class KillDone(Struct, frozen=True, kw_only=True):
    """A kill that took place."""

    moment: str
    """`mid_epoch`, `in_a_save` or `after_a_resume`."""
    after_step: int
    """The newest step that was done."""
    resumed_at_step: int | None
    """The first step of the next start; None if it computed none."""


class Problem(Struct, frozen=True, kw_only=True):
    """The first thing that is wrong."""

    cause: str
    sentence: str
    """What is usually wrong, in words."""
    component: str
    """What differs first."""
    step: int | None
    """The first step that differs."""
    resume: int | None
    """The number of the resume before it."""
    detail: str
    to_do: str
    values: list[DifferingValue]
    """The first of those that differ."""
    num_values: int
    """All that differ."""


class Certificate(Struct, frozen=True, kw_only=True):
    """What a proof has shown."""

    verdict: str
    """`exact`, `not_exact`, `not_deterministic` or `not_provable`."""
    command: list[str]
    """With `{output_dir}` where the folder stands."""
    problem: Problem | None
    """None where the resumes are exact."""
    kills: list[KillDone]
    first_step: int | None
    last_step: int | None
    compared: dict[str, int]
    """How many values of each part were compared, by name, such as `optimizer`."""
    not_shown: list[str]
    """Parts that no start has shown, so that nothing can be said of them but by their effect."""
    passed_over: list[str]
    """Values that are not compared: they differ between uninterrupted runs, or nothing draws from them."""
    notes: list[str]
    """What else happened."""
    digest: str | None
    """Of everything that was compared, over all steps of the uninterrupted run."""
    checkpoints: dict[str, str]
    """The SHA-256 of the uninterrupted run's checkpoints, by path."""
    versions: dict[str, str]
    seconds: dict[str, float]
    """How long each start took, by its name."""
    made_at: str
    """When, in UTC."""
    output_tail: list[str]
    """The last lines that the failing start printed; empty if none failed."""
