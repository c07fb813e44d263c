"""The command line: one file per command."""

from __future__ import annotations

from crashproof.errors import MissingExtra
from crashproof.optional_dependencies import require_modules

__all__ = ["main"]


def main() -> None:
    """Run `crashproof`; without the terminal extra, print how to install it."""
    try:
        require_modules("terminal", "rich", "typer")
    except MissingExtra as error:
        raise SystemExit(f"crashproof: {error}") from None
    from crashproof.cli.app import run

    run()
