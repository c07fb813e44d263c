"""Files that a supervisor and its child share."""
