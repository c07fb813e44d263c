"""What the processes of a run decide, check and share together."""
