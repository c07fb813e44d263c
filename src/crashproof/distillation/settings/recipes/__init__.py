"""What each recipe adds to the config; none of it needs PyTorch."""
