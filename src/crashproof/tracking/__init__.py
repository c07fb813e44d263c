"""Hear what a training loop reports, and keep it."""
