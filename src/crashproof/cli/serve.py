"""Show all runs under a folder on a web page."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from crashproof.cli.output import print_json, say
from crashproof.errors import AddressInUse, ConfigError, NotAFolder

__all__ = ["serve"]

TOKEN_VARIABLE = "CRASHPROOF_TOKEN"  # noqa: S105 - the name of a variable, not a token


def serve(
    root: Annotated[Path, typer.Argument(help="The folder that the runs lie in, or one run.", metavar="ROOT")] = Path(
        "."
    ),
    host: Annotated[
        str, typer.Option(help="Bind to this address; beyond loopback a token is asked for.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A name that a proxy or a DNS entry gives this server.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say where it listens as one JSON object.")] = False,
) -> None:
    """Show all runs under ROOT on a web page, live. Reads only, and needs no lock.

    On loopback nobody else reaches it; from another machine, forward the port:
    ssh -L 8765:localhost:8765 HOST. Bound elsewhere, it asks for a token: the
    one in CRASHPROOF_TOKEN, or one that it makes and prints. It speaks plain
    HTTP: across networks, put it behind a proxy that speaks TLS.

    /metrics has the same numbers for Prometheus. Ctrl-C ends it.

    Example: crashproof serve runs
    """
    from crashproof.dashboard.access import Access
    from crashproof.dashboard.server import run_server

    if not root.is_dir():
        raise NotAFolder(root)
    access = Access.for_address(host, token=os.environ.get(TOKEN_VARIABLE) or None, more_names=allow_host or ())
    listener = _listener(host, port)
    address = _address(host, listener.getsockname()[1])
    # Ctrl-C is how it ends.
    with suppress(KeyboardInterrupt):
        if as_json:
            print_json({"url": address, "token": access.token, "root": str(root.absolute())})
        elif access.token is None:
            say(f"Runs under {root} are at {address} (Ctrl-C ends it).")
        else:
            say(f"Runs under {root} are at {address}?token={access.token} (Ctrl-C ends it).")
            say("Whoever has that address can look. It speaks plain HTTP: across networks, use a proxy with TLS.")
        run_server(root, access, listener)


def _listener(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"{host!r} is no address of this machine.", hint="Such as --host 127.0.0.1.") from error
    family, _, _, _, place = found[0]
    try:
        return socket.create_server(place[:2], family=family, backlog=128)
    except OSError as error:
        raise AddressInUse(host, port, reason=os.strerror(error.errno or 0)) from error


def _address(host: str, port: int) -> str:
    name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)  # noqa: S104 - compared
    return f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"
