"""The parent of any training command."""
