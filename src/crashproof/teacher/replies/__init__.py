"""What a teacher's reply says: its answer, its end, its tokens, its error; no network and no files."""
