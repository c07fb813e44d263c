"""What a trainer does about bad steps."""
