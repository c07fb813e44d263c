"""Which checkpoints are intact, and where to resume."""
