"""What the losses of a run show: the one place that decides."""
