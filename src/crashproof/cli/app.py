"""The command line application."""

from __future__ import annotations

import sys

import typer

from crashproof.cli.adopt import adopt
from crashproof.cli.capture_logits import capture_logits
from crashproof.cli.checkpoints import checkpoints
from crashproof.cli.compare import compare
from crashproof.cli.doctor import doctor
from crashproof.cli.export import export
from crashproof.cli.generate import generate
from crashproof.cli.history import history
from crashproof.cli.output import clean
from crashproof.cli.prove import prove
from crashproof.cli.repair import repair
from crashproof.cli.run import run as run_command
from crashproof.cli.runs import runs
from crashproof.cli.serve import serve
from crashproof.cli.status import status
from crashproof.cli.stop import stop
from crashproof.cli.verify import verify
from crashproof.cli.watch import watch
from crashproof.errors import CrashproofError
from crashproof.rules.secrets.texts import without_secrets

__all__ = ["run"]

app = typer.Typer(
    name="crashproof",
    help="Monitor, supervise, verify, repair and stop training runs; query teachers.",
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
app.command("run")(run_command)
app.command()(stop)
app.command()(prove)
app.command()(export)
app.command()(doctor)
app.command()(verify)
app.command()(repair)
app.command()(adopt)
app.command()(generate)
app.command()(capture_logits)


def run() -> None:
    """Run the command line; an expected error is one line on stderr and exit code 2."""
    try:
        app()
    except (CrashproofError, OSError) as error:
        sys.stderr.write(f"crashproof: {clean(without_secrets(str(error)))}\n")
        raise SystemExit(2) from None
