"""Teachers: `local` models, models behind an `api`, and the `distributions` that a loss compares with."""
