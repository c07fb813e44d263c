"""Run a teacher server until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import signal
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

from crashproof.disk.atomic import write_bytes_atomically
from crashproof.testing.teacher_server import Fault, Faults, FaultTimes, Provider, TeacherServer


def main() -> None:
    """Run the server with the given arguments."""
    options = _parser().parse_args()
    stops = {signal.SIGINT, signal.SIGTERM}
    # Before the server's thread starts, which inherits the mask: only this thread receives them.
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
        options,
        "prices",
        "cached_share",
        "models",
        "api_key",
        "latency_seconds",
        "honours_idempotency_keys",
        "provider",
    )
    return TeacherServer(faults=faults, port=options.port, **terms)


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; the classes have their own defaults for the others."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m crashproof.testing.teacher_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 (default) picks a free one")
    parser.add_argument("--port-file", type=Path, help="file to write the port to once the server listens")
    parser.add_argument(
        "--state-file", type=Path, help="file to write the counts to at exit, as returned by GET /counts"
    )
    parser.add_argument("--model", dest="models", action="append", help="model name to serve; may be repeated")
    parser.add_argument("--api-key", help="API key that clients must send")
    parser.add_argument(
        "--prices",
        type=Decimal,
        nargs=3,
        metavar=("PROMPT", "CACHED", "COMPLETION"),
        help="US dollars per million tokens",
    )
    parser.add_argument(
        "--cached-share", type=float, help="share of each prompt that is charged as cached, from 0 to 1"
    )
    parser.add_argument("--latency-seconds", type=float)
    parser.add_argument(
        "--provider", type=Provider, choices=list(Provider), help="whose manner of answering to take on"
    )
    parser.add_argument("--honours-idempotency-keys", action="store_true")
    faults = parser.add_argument_group("faults")
    faults.add_argument("--script", type=_script, help="faults of the next requests, such as overloaded,none,stall")
    faults.add_argument("--share", type=float, help="probability of a random fault per attempt, from 0 to 1")
    faults.add_argument("--seed", type=int, help="seed of the random faults")
    faults.add_argument("--kinds", type=_kinds, help="kinds of random faults, such as rate_limited,drop_after")
    faults.add_argument("--most-in-a-row", type=int, help="maximum random faults in a row for one request")
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
