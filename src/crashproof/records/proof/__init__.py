"""What a proof of exact resumes leaves on the disk."""
