"""One check, in a process of its own.

`python -m benchmarks.device.process CHECK DEVICE WORK RESULT` appends each row to RESULT as soon as it is known.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from benchmarks.device.sizes import SIZES


def main() -> None:
    """Run what the command line names."""
    name, device, work, result = sys.argv[1:]
    check = importlib.import_module(f"benchmarks.device.checks.{name}").check
    with Path(result).open("a") as rows:
        for row in check(SIZES[device], Path(work)):
            rows.write(json.dumps(row.as_json()) + "\n")
            rows.flush()


if __name__ == "__main__":
    main()
