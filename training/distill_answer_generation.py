"""Distil answers into a student: `python -m training.distill_answer_generation --help`."""

import sys

from holdfast.distillation.command import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main("answer_generation"))
