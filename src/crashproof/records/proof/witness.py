"""What a training process saw of itself while a proof was under way."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Refused", "RunOpened", "Seen", "Waiting", "WitnessLine"]


class RunOpened(Struct, frozen=True, kw_only=True, tag="run_opened"):
    """A tracker opened a run."""

    progress: str
    """Its progress folder."""
    config_hash: str


class Refused(Struct, frozen=True, kw_only=True, tag="refused"):
    """A tracker refused to open a run, as it lies outside of the proof's folder."""

    progress: str


class Seen(Struct, frozen=True, kw_only=True, tag="seen"):
    """What a step left behind."""

    step: int
    values: dict[str, str]
    """Digests, or short values themselves, by dotted name: `model.layer.weight`, `random.torch`."""
    samples: list[str] | None = None
    """Of the step's batch, in order; None if no batch was shown."""
    unreadable: dict[str, str] = {}
    """Kinds of values that nothing can be said of, by name."""


class Waiting(Struct, frozen=True, kw_only=True, tag="waiting"):
    """The process waits to be killed."""

    step: int


WitnessLine = RunOpened | Refused | Seen | Waiting
