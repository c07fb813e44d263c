"""Everything that writes to the disk."""
