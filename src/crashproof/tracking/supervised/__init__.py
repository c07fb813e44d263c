"""What a tracker tells the supervisor of its process."""
