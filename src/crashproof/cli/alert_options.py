"""Options for alerts that several commands share."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from crashproof.alerts.settings import names_variable, read_address
from crashproof.errors import ConfigError

__all__ = ["AlertCommand", "AlertSlack", "AlertWebhook", "alert_address"]

AlertWebhook = Annotated[
    str | None, typer.Option(metavar="env:NAME", help="Environment variable with a webhook URL for alerts.")
]
AlertSlack = Annotated[
    str | None, typer.Option(metavar="env:NAME", help="Environment variable with a Slack webhook URL.")
]
AlertCommand = Annotated[str | None, typer.Option(help="Shell command that gets each alert on stdin.")]


def alert_address(named: str | None, option: str) -> str | None:
    """The address that the variable `env:NAME` of an option holds.

    Raises:
        ConfigError: it is an address itself, or the variable is not set.
    """
    if named is None:
        return None
    if not names_variable(named):
        # The address is a secret, and other users can read the command line.
        raise ConfigError(f"{option} is not env:NAME.", hint="Put the URL into a variable, and pass its name.")
    return read_address(named, os.environ, where=option)
