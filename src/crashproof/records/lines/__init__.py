"""How a record becomes a line of JSON, and back."""
