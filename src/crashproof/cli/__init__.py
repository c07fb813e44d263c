"""The command line: one file per command."""

from __future__ import annotations

from crashproof.errors import MissingExtra

__all__ = ["main"]


def main() -> None:
    """Run `crashproof`; without the terminal extra, print how to install it."""
    try:
        from crashproof.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        raise SystemExit(f"crashproof: {MissingExtra('terminal')}") from None
    run()
