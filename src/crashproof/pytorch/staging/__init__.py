"""Copies of training state in the host's memory, for saves in the background."""
