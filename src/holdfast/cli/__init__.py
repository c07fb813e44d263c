"""The command line: one file per command."""

from __future__ import annotations

from holdfast.errors import MissingExtra

__all__ = ["main"]


def main() -> None:
    """Run `holdfast`; without the terminal extra, say how to get it."""
    try:
        from holdfast.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        raise SystemExit(f"holdfast: {MissingExtra('terminal')}") from None
    run()
