"""Look at runs while other processes write them."""
