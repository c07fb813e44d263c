"""What a reply says: an answer, its end, its tokens, or an error."""
