"""One rank that starts the trainer again and again, each time with what a case gives to this rank.

Python and PyTorch are imported once for all cases. The test hosts the store, as `torchrun`'s agent does it; the
number of the case stands for that of the restart, which keeps the cases apart.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from crashproof.distillation.command import main

RANK = int(os.environ["RANK"])


def run(number: int, case: dict[str, Any]) -> dict[str, Any]:
    own = case["ranks"][RANK]
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
    before = dict(os.environ)
    os.environ.update(own["environment"])
    sys.path[:0] = own["path"]
    said = io.StringIO()
    logging.getLogger("crashproof").setLevel(logging.NOTSET)
    begun = time.monotonic()
    with contextlib.redirect_stderr(said):
        code = main(own["recipe"], own["arguments"])
    del sys.path[: len(own["path"])]
    os.environ.clear()
    os.environ.update(before)
    return {"name": case["name"], "code": code, "said": said.getvalue(), "seconds": time.monotonic() - begun}


if __name__ == "__main__":
    cases = json.loads(Path(sys.argv[1]).read_text())
    with Path(f"{sys.argv[1]}.{RANK}").open("w") as results:
        for number, case in enumerate(cases):
            results.write(json.dumps(run(number, case)) + "\n")
            results.flush()
