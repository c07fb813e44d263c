"""Text, tokens, and what a grammar allows."""
