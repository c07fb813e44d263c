"""Certify that a command resumes exactly."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from crashproof.cli.arguments import AsJson
from crashproof.cli.output import as_json_text, clean, print_json, say
from crashproof.disk.atomic import write_bytes_atomically
from crashproof.disk.files import REAL_DISK
from crashproof.records.proof.certificate import Certificate
from crashproof.rules.proof.verdict import Verdict

__all__ = ["prove"]

_EXIT_CODES = {
    Verdict.EXACT: 0,
    Verdict.NOT_EXACT: 1,
    Verdict.NOT_DETERMINISTIC: 3,
    Verdict.NOT_PROVABLE: 3,
}


def prove(
    command: Annotated[
        list[str],
        typer.Argument(help="The training command, with {output_dir} for its output folder.", metavar="COMMAND…"),
    ],
    kills: Annotated[int, typer.Option(help="How often to kill the run.", min=1, max=20)] = 3,
    report: Annotated[
        Path | None, typer.Option(help="Folder for certificate.html and certificate.json.", metavar="DIR")
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(help="Folder in which the runs of the proof stay; by default a temporary one.", metavar="DIR"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Certify that a training command resumes exactly, or name the first thing that does not.

    Runs the command uninterrupted twice, then once with kills (SIGKILL) in
    mid-epoch, in a save and soon after a resume, in scratch folders, and
    compares every step bit for bit.

    Exit codes: 0 it resumes exactly; 1 it does not; 2 error; 3 it is not
    deterministic, or nothing can be proved of it.

    Example: crashproof prove -- python train.py --output-dir {output_dir}
    """
    # Imported here so that the other commands start without what a proof needs.
    from crashproof.proof.prover import prove_command
    from crashproof.proof.scratch import scratch_folder

    with _exiting_on_request(), scratch_folder(scratch) as folder:
        certificate = prove_command(command, folder, num_kills=kills, say=_say_progress)
    if report is not None:
        _write(certificate, report)
    if as_json:
        print_json(certificate)
    else:
        _print(certificate)
    raise typer.Exit(_EXIT_CODES[Verdict(certificate.verdict)])


@contextmanager
def _exiting_on_request() -> Iterator[None]:
    """On SIGTERM, end what was started and remove the scratch folder, as on Ctrl-C."""

    def exit_now(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, exit_now)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say_progress(text: str) -> None:
    """Tell people what goes on; the output for programs stays clean."""
    typer.echo(clean(text), err=True)


def _print(certificate: Certificate) -> None:
    from crashproof.proof.wording import headline, paragraphs

    say(f"{headline(certificate)}.")
    for each in paragraphs(certificate):
        say(f"  {each}")
    for line in certificate.output_tail:
        say(f"  | {line}")


def _write(certificate: Certificate, folder: Path) -> None:
    from crashproof.proof.page import certificate_page

    REAL_DISK.make_folders(folder)
    write_bytes_atomically(folder / "certificate.json", f"{as_json_text(certificate, indent=2)}\n".encode())
    write_bytes_atomically(folder / "certificate.html", certificate_page(certificate).encode())
    _say_progress(f"Wrote {folder / 'certificate.html'} and certificate.json.")
