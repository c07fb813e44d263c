"""Prove that a command resumes exactly."""
