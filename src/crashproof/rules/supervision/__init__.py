"""Decisions of a supervisor."""
