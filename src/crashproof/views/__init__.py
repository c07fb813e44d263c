"""A run for people: notebook, tables, post-mortem."""
