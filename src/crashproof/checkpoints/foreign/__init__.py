"""Find and inspect checkpoints that other code wrote."""
