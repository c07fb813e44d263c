"""Whether the processes of a run agree, and in which words they differ."""
