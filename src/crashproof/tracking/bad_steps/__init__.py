"""Judge the steps of a run, and record the bad ones."""
