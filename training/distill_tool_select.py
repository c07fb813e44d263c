"""Teach a student to choose a tool: `python -m training.distill_tool_select --help`."""

import sys

from crashproof.distillation.command import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main("tool_select"))
