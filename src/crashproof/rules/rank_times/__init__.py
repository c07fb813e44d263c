"""How ranks compare, and how often that is said: the one place that decides."""
