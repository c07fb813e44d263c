"""Views of a run: notebook, data frames, post-mortem."""
