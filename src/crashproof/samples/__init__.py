"""What a line of training data says, whatever its form."""
