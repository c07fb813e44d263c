"""What the processes of a run make of each other's silence."""
