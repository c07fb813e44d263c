"""The names that values have outside crashproof."""
