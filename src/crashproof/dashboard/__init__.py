"""The dashboard: a read-only server and its page."""
