"""The event of damage in a journal."""

from __future__ import annotations

from crashproof.disk.journal import Damage
from crashproof.disk.run_folder import RunFolder
from crashproof.records.events import DamageFound
from crashproof.records.requests import price_left_in

__all__ = ["damage_event"]


def damage_event(folder: RunFolder, name: str, damage: Damage, *, timestamp: float, attempt: int) -> DamageFound:
    """The event of damaged bytes that were moved out of a journal; for an answer, with its price."""
    return DamageFound(
        timestamp=timestamp,
        attempt=attempt,
        file=name,
        offset=damage.offset,
        num_bytes=damage.num_bytes,
        reason=damage.reason,
        moved_to=folder.recorded_path(damage.moved_to or folder.quarantine / name),
        cost=price_left_in(damage.content) if name == folder.answers.name else None,
    )
