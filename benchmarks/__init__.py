"""What crashproof costs."""
