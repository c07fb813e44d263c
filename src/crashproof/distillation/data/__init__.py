"""Training data: lines, checked, and their tokens."""
