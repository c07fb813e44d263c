"""What holdfast costs."""
