"""Teacher answers that many processes and machines share."""

from __future__ import annotations

from crashproof.teacher.shared_store.store import SharedStore

__all__ = ["SharedStore"]
