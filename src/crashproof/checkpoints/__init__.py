"""Verify, choose, delete and quarantine checkpoints."""
