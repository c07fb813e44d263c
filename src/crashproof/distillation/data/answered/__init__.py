"""Prompts, and the answers of a teacher to them."""
