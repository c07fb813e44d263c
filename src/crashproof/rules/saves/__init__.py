"""What becomes of a run whose checkpoints cannot be saved: the one place that decides."""
