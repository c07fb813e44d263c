"""Teacher answers by key; none is paid for twice."""
