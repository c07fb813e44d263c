"""Distil answers into a student: `python -m training.distill_answer_generation --help`."""

import sys

from crashproof.distillation.command import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main("answer_generation"))
