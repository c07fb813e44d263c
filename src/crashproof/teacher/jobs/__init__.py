"""Ask a teacher a whole file of prompts."""
