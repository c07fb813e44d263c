"""What a tracker tells a proof of exact resumes; nothing, unless one is under way."""
