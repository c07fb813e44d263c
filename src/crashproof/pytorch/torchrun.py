"""torchrun with an exit code that says whether to start again.

torchrun itself ends with 1, whatever its processes ended with. This program takes the same arguments:

    python -m crashproof.pytorch.torchrun --nnodes 2 … -m training.distill_kd --config config.yaml …
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import torch.distributed as dist
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError

from crashproof.pytorch.interrupts import EXIT_PREEMPTED

__all__ = ["exit_code_of", "main"]

_EXIT_ERROR = 2
_FIRST_SIGNAL = 128
_HAS_STORE_OF_ITS_OWN = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the processes of this host, and return the exit code that says most about what to do next.

    It is 75, start the same command again, also where this host was asked to stop or could not meet the others.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if _is_elastic(given):
        # As long as the processes share torchrun's store, it tells hosts that join later no address (torch 2.13).
        os.environ.setdefault(_HAS_STORE_OF_ITS_OWN, "1")
    try:
        torchrun.main(given)
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda each: each[1].timestamp)
        for rank, failure in failures:
            _say(f"Rank {rank} (pid {failure.pid}) {_ending(failure.exitcode)}.")
        return exit_code_of([failure.exitcode for _, failure in failures])
    except SignalException as error:
        _say(f"Stopped by {error.sigval.name}.")
        return EXIT_PREEMPTED
    except (RendezvousError, dist.DistError) as error:
        reason = str(error.__cause__ or error).splitlines()[0].rstrip(".")
        _say(f"Could not meet the other hosts, or lost them: {reason}. Start the same command again.")
        return EXIT_PREEMPTED
    return 0


def exit_code_of(codes: Sequence[int]) -> int:
    """One exit code for processes that failed, the earliest first; a signal's number is negative, as in `subprocess`.

    An error that a restart does not mend decides for all: the others have ended because of it. A process that ends
    with 75 has often lost another, so it decides last.
    """
    if _EXIT_ERROR in codes:
        return _EXIT_ERROR
    first = next((code for code in codes if code != EXIT_PREEMPTED), EXIT_PREEMPTED)
    return first if first > 0 else _FIRST_SIGNAL - first


def _is_elastic(arguments: list[str]) -> bool:
    options = torchrun.parse_args(arguments)  # type: ignore[no-untyped-call]  # torch leaves it so.
    return ":" in options.nnodes


def _ending(code: int) -> str:
    return f"ended with exit code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"


def _say(text: str) -> None:
    sys.stderr.write(f"torchrun: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
