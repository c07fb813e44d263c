"""A page to watch runs with: server and page over the reader; never writes."""
