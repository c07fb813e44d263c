"""The updates of the training loop, from its call to the journal, the session and the curves."""
