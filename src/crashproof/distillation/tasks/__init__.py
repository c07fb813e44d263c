"""Tasks that are generated from a seed."""
