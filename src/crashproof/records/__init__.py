"""Typed records of everything that reaches the disk."""
