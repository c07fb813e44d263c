"""Ask one model over HTTP, and pay once."""
