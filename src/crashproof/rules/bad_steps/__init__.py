"""Steps whose loss is bad: what they are, and what is done about them."""
