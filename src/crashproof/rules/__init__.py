"""Decisions: no files, no clock, no torch."""
