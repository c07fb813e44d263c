"""Ways to keep a step's scalars: crashproof, its floor, and the trackers of `dev`."""
