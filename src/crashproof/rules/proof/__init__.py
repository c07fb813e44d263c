"""Whether a resumed run is the uninterrupted one, and if not, what is wrong."""
