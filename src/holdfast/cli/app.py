"""Where the commands come together."""

from __future__ import annotations

import sys

import typer

from holdfast.cli.adopt import adopt
from holdfast.cli.capture_logits import capture_logits
from holdfast.cli.checkpoints import checkpoints
from holdfast.cli.compare import compare
from holdfast.cli.doctor import doctor
from holdfast.cli.export import export
from holdfast.cli.generate import generate
from holdfast.cli.history import history
from holdfast.cli.output import clean
from holdfast.cli.repair import repair
from holdfast.cli.runs import runs
from holdfast.cli.serve import serve
from holdfast.cli.status import status
from holdfast.cli.stop import stop
from holdfast.cli.verify import verify
from holdfast.cli.watch import watch
from holdfast.errors import HoldfastError

__all__ = ["run"]

app = typer.Typer(
    name="holdfast",
    help="Look after training runs: how they stand, whether they are whole, what a restart would do.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command()(status)
app.command()(watch)
app.command()(runs)
app.command()(history)
app.command()(checkpoints)
app.command()(compare)
app.command()(serve)
app.command()(stop)
app.command()(export)
app.command()(doctor)
app.command()(verify)
app.command()(repair)
app.command()(adopt)
app.command()(generate)
app.command()(capture_logits)


@app.callback()
def _holdfast() -> None:
    """Look after training runs."""


def run() -> None:
    """Run the command line; an error that a user can meet is one line on stderr and exit code 2."""
    try:
        app()
    except (HoldfastError, OSError) as error:
        sys.stderr.write(f"holdfast: {clean(str(error))}\n")
        raise SystemExit(2) from None
