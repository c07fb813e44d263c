"""How the ranks of a run compare, and how often that is said: the one place that decides."""
