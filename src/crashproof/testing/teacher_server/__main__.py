"""Run a teacher's server in a process of its own, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import signal
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

from crashproof.disk.atomic import write_bytes_atomically
from crashproof.testing.teacher_server import Fault, Faults, FaultTimes, TeacherServer


def main() -> None:
    """Serve as the arguments say."""
    options = _parser().parse_args()
    stops = {signal.SIGINT, signal.SIGTERM}
    # Before the server's thread starts, which inherits the mask: only this thread takes them.
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    with _server(options) as server:
        if options.port_file is not None:
            port = server.base_url.removesuffix("/v1").rpartition(":")[2]
            write_bytes_atomically(options.port_file, port.encode())
        sys.stdout.write(f"{server.base_url}\n")
        sys.stdout.flush()
        signal.sigwait(stops)
    if options.state_file is not None:
        write_bytes_atomically(options.state_file, server.counts.as_json())


def _server(options: argparse.Namespace) -> TeacherServer:
    times = FaultTimes(**_given(options, "retry_after_seconds", "stall_seconds", "slow_body_seconds"))
    faults = Faults(times=times, **_given(options, "script", "share", "seed", "kinds", "most_in_a_row"))
    terms = _given(
        options, "prices", "cached_share", "models", "api_key", "latency_seconds", "honours_idempotency_keys"
    )
    return TeacherServer(faults=faults, port=options.port, **terms)


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given; for the others the classes know their own defaults."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m crashproof.testing.teacher_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument("--port-file", type=Path, help="is written, whole, once the server listens: its port")
    parser.add_argument(
        "--state-file", type=Path, help="is written at the end: the counts, as GET /counts shows them"
    )
    parser.add_argument("--model", dest="models", action="append", help="a name served; may be given several times")
    parser.add_argument("--api-key", help="what a client must bring")
    parser.add_argument("--prices", type=Decimal, nargs=3, metavar=("PROMPT", "CACHED", "COMPLETION"))
    parser.add_argument("--cached-share", type=float, help="how much of each prompt is charged as cached")
    parser.add_argument("--latency-seconds", type=float)
    parser.add_argument("--honours-idempotency-keys", action="store_true")
    faults = parser.add_argument_group("faults")
    faults.add_argument("--script", type=_script, help="what the next requests suffer, as in: overloaded,none,stall")
    faults.add_argument("--share", type=float, help="how likely a try is to suffer by chance, from 0 to 1")
    faults.add_argument("--seed", type=int, help="decides who suffers by chance")
    faults.add_argument("--kinds", type=_kinds, help="what they suffer, as in: rate_limited,drop_after")
    faults.add_argument("--most-in-a-row", type=int, help="so many tries of one request may suffer by chance")
    times = parser.add_argument_group("times of the faults")
    times.add_argument("--retry-after-seconds", type=int)
    times.add_argument("--stall-seconds", type=float)
    times.add_argument("--slow-body-seconds", type=float)
    return parser


def _script(text: str) -> list[Fault | None]:
    return [None if name == "none" else Fault(name) for name in text.split(",")]


def _kinds(text: str) -> list[Fault]:
    return [Fault(name) for name in text.split(",")]


if __name__ == "__main__":
    main()
