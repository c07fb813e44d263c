"""The training tasks, one file each."""
