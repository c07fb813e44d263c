"""Everything that reaches the disk, as typed data."""
