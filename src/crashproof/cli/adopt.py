"""Adopt checkpoints that other code wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crashproof.cli.arguments import AsJson
from crashproof.cli.output import print_json, say
from crashproof.formatting import as_bytes
from crashproof.tracking.adopt import Adoption, adopt_checkpoints
from crashproof.tracking.context import get_recovery_checkpoint

__all__ = ["adopt"]

EXIT_SOME_TORN = 1


def adopt(
    folder: Annotated[Path, typer.Argument(help="The folder with the checkpoints.", metavar="DIR")],
    samples_per_step: Annotated[
        int | None,
        typer.Option(min=1, help="Samples per optimizer step, to compute each checkpoint's position in the data."),
    ] = None,
    forget_gone: Annotated[
        bool,
        typer.Option("--forget-gone", help="Forget adopted checkpoints that are gone, if a newer one is intact."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build a run around a folder of checkpoints that other code wrote.

    Adopts files such as checkpoint_1000.pt and folders of transformers,
    accelerate and torch.distributed.checkpoint. Reads each one completely; a
    torn one is reported and skipped. Writes only to DIR/progress. Run it again
    at any time: it adds what is new.

    The next start in DIR, with any config, resumes from the newest one.

    Exit codes: 0 all are intact; 1 some are torn; 2 none could be adopted, or
    another error.

    Example: crashproof adopt runs/old --samples-per-step 256
    """
    adoption = adopt_checkpoints(folder, samples_per_step=samples_per_step, forgets_gone=forget_gone)
    resume = get_recovery_checkpoint(folder)
    if as_json:
        print_json(_as_object(adoption, None if resume is None else resume[0], samples_per_step))
    else:
        _say(adoption, folder, None if resume is None else resume[0].name, samples_per_step)
    if adoption.torn:
        raise typer.Exit(EXIT_SOME_TORN)


def _as_object(adoption: Adoption, resume: Path | None, samples_per_step: int | None) -> dict[str, object]:
    return {
        "adopted": adoption.adopted,
        "torn": adoption.torn,
        "unchecked": adoption.unchecked,
        "known_before": adoption.num_known,
        "forgotten": adoption.forgotten,
        "is_position_known": samples_per_step is not None,
        "resume": None if resume is None else str(resume),
    }


def _say(adoption: Adoption, folder: Path, resume: str | None, samples_per_step: int | None) -> None:
    for each in adoption.adopted:
        files = adoption.unchecked.get(each.checkpoint_path, ())
        doubt = f" ({', '.join(files)}: no checksum inside, only the size was checked)" if files else ""
        size = as_bytes(each.num_bytes or 0)
        say(f"  step {each.checkpoint_step:,}: {each.checkpoint_path} ({size}): intact{doubt}")
    for torn in adoption.torn:
        say(f"  step {torn.step:,}: {torn.path}: {torn.reason}; skipped")
    for path in adoption.forgotten:
        say(f"  {path}: gone; forgotten")
    say(
        f"{folder}: {len(adoption.adopted)} checkpoints adopted, {adoption.num_known} already known, "
        f"{len(adoption.torn)} torn."
    )
    if adoption.adopted and samples_per_step is None:
        say("Their position in the data is unknown and recorded as 0: pass --samples-per-step to compute it.")
    if resume is not None:
        say(f"The next start in {folder} resumes from {resume}.")
