"""Whether a resumed run is the uninterrupted one, and what usually is wrong where it is not."""
