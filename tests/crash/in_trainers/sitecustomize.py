"""With this folder on `PYTHONPATH`, a trainer that any command starts writes down what it learns from.

See `rank_kills_program.py`.
"""

import sys
from pathlib import Path

started_as = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else ""
if started_as == "training.distill_kd":
    sys.path.append(str(Path(__file__).parents[1]))
    import rank_kills_program  # noqa: F401  # For what it changes.
