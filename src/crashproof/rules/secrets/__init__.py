"""What a secret is, and how it is hidden: the one place that decides."""
