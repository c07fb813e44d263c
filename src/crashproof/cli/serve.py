"""Serve a web page of all runs under a folder."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from crashproof.cli.arguments import AsJson
from crashproof.cli.output import print_json, say
from crashproof.errors import AddressInUse, ConfigError, NotAFolder

__all__ = ["serve"]

TOKEN_VARIABLE = "CRASHPROOF_TOKEN"  # noqa: S105 - the name of a variable, not a token


def serve(
    root: Annotated[Path, typer.Argument(help="A folder of runs, or one run.", metavar="ROOT")] = Path("."),
    host: Annotated[str, typer.Option(help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8765,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Additional host name of this server, such as a proxy's.")
    ] = None,
    no_token: Annotated[
        bool,
        typer.Option("--no-token", help="Require no token: anyone on this machine can read all runs under ROOT."),
    ] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow symbolic links that lead out of ROOT.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a live web page of all runs under ROOT. Read-only, takes no lock.

    Clients need a token: open the printed address, which contains it. It is
    generated at each start; set CRASHPROOF_TOKEN to choose it.

    On loopback, only this machine reaches it; from another machine, forward
    the port: ssh -L 8765:localhost:8765 HOST. Serves plain HTTP: across
    networks, use a reverse proxy with TLS.

    /metrics serves the same numbers for Prometheus. Stop it with Ctrl-C.

    Example: crashproof serve runs
    """
    from crashproof.dashboard.access import Access, is_loopback
    from crashproof.dashboard.server import run_server

    if not root.is_dir():
        raise NotAFolder(root)
    access = Access.for_address(
        host,
        token=os.environ.get(TOKEN_VARIABLE) or None,
        more_names=allow_host or (),
        requires_token=not no_token,
    )
    listener = _listen(host, port)
    address = _address(host, listener.getsockname()[1])
    # Ctrl-C is the normal way to stop it.
    with suppress(KeyboardInterrupt):
        if as_json:
            print_json({"url": address, "token": access.token, "root": str(root.absolute())})
        else:
            _say_where(root, address, access.token, is_local=is_loopback(host))
        run_server(root, access, listener, follows_links=follow_links)


def _say_where(root: Path, address: str, token: str | None, *, is_local: bool) -> None:
    query = "" if token is None else f"?token={token}"
    say(f"Serving the runs under {root} at {address}{query} (Ctrl-C to stop).")
    if token is None:
        say(f"Without a token, anyone on this machine can read all runs under {root}.")
    elif not is_local:
        say("Anyone with this address can view them. Plain HTTP: across networks, use a reverse proxy with TLS.")


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(
            f"{host!r} is not an address of this machine.", hint="Pass one, such as --host 127.0.0.1."
        ) from error
    family, _, _, _, place = found[0]
    try:
        return socket.create_server(place[:2], family=family, backlog=128)
    except OSError as error:
        raise AddressInUse(host, port, reason=os.strerror(error.errno or 0)) from error


def _address(host: str, port: int) -> str:
    name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)  # noqa: S104 - compared
    return f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"
