"""Teach a student to use tools: `python -m training.distill_process --help`."""

import sys

from crashproof.distillation.command import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main("process"))
