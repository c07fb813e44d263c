"""How long a run still takes: the one place that decides."""
