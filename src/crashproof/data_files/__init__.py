"""Files of records, in whatever container people keep them."""
