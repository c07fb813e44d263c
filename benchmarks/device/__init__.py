"""What only a GPU can show, checked at once."""
