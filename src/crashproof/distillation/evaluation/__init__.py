"""What a student can do with data it never saw."""
