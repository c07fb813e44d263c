"""From an update of the training loop to its line, the session and the curves."""
