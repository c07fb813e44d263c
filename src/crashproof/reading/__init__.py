"""Read runs while other processes write them."""
