"""The identity of a run: its config, and which keys of it count."""

from crashproof.rules.identity.canonical import canonical_config, config_hash, config_leaves
from crashproof.rules.identity.changes import (
    NO_DIFFERENCE,
    Comparison,
    IdentityRules,
    changed_keys,
    compare_configs,
    is_another_run,
)

__all__ = [
    "NO_DIFFERENCE",
    "Comparison",
    "IdentityRules",
    "canonical_config",
    "changed_keys",
    "compare_configs",
    "config_hash",
    "config_leaves",
    "is_another_run",
]
