"""How a process learns of a proof."""

from __future__ import annotations

__all__ = ["ENVIRONMENT_VARIABLE"]

ENVIRONMENT_VARIABLE = "CRASHPROOF_PROOF"
"""Names the folder of this start of the command; set by `crashproof prove` alone."""
