"""The event of damage in a journal."""

from __future__ import annotations

from crashproof.disk.journal import Damage
from crashproof.disk.run_folder import RunFolder
from crashproof.records.events import (
    DamageFound,
)
from crashproof.records.requests import price_left_in

__all__ = [
    "damage_found",
]


def damage_found(folder: RunFolder, name: str, piece: Damage, *, timestamp: float, attempt: int) -> DamageFound:
    """The event of a broken piece that was moved out of a journal; of an answer, with its price."""
    return DamageFound(
        timestamp=timestamp,
        attempt=attempt,
        file=name,
        offset=piece.offset,
        num_bytes=len(piece.content),
        reason=piece.reason,
        moved_to=folder.recorded_path(folder.quarantine / name),
        cost=price_left_in(piece.content) if name == folder.answers.name else None,
    )
