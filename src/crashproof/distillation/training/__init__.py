"""The run that every recipe shares."""
