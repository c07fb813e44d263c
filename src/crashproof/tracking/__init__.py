"""Record what a training loop reports."""
