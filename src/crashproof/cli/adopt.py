"""Adopt checkpoints that other code wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crashproof.cli.arguments import AsJson
from crashproof.cli.output import print_json, say
from crashproof.formatting import as_bytes

if TYPE_CHECKING:
    from crashproof.tracking.adopt import Adoption

__all__ = ["adopt"]

EXIT_SOME_TORN = 1
_MAX_LISTED = 20


def adopt(
    folder: Annotated[Path, typer.Argument(help="The folder with the checkpoints.", metavar="DIR")],
    samples_per_step: Annotated[
        int | None, typer.Option(min=1, help="Samples per optimizer step, for the positions in the data.")
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option(
            help="The step of a checkpoint that does not name its own; may be repeated.", metavar="PATH=STEP"
        ),
    ] = None,
    forget_gone: Annotated[
        bool,
        typer.Option("--forget-gone", help="Forget adopted checkpoints that are gone, if a newer one is intact."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build a run around a folder of checkpoints that other code wrote.

    Adopts files such as checkpoint_1000.pt and ckpt.pt, and folders of
    transformers, accelerate, DeepSpeed, Megatron and others, also in folders
    below. The step comes from the name or from inside; nothing in a file is
    executed. Reads each one completely; a torn one is reported and skipped,
    and what is not understood is listed. Writes only to DIR/progress. Run it
    again at any time: it adds what is new.

    The next start in DIR, with any config, resumes from the newest one.

    Exit codes: 0 all are intact; 1 some are torn; 2 none could be adopted, or
    another error.

    Example: crashproof adopt runs/old --samples-per-step 256
    """
    # Imported here so that commands that only read start without what writes a run.
    from crashproof.tracking.adopt import adopt_checkpoints
    from crashproof.tracking.context import get_recovery_checkpoint

    adoption = adopt_checkpoints(
        folder, samples_per_step=samples_per_step, forgets_gone=forget_gone, steps=_given_steps(step or [])
    )
    resume = get_recovery_checkpoint(folder)
    if as_json:
        print_json(_as_object(adoption, None if resume is None else resume[0], samples_per_step))
    else:
        _say(adoption, folder, None if resume is None else resume[0].name, samples_per_step)
    if adoption.torn:
        raise typer.Exit(EXIT_SOME_TORN)


def _given_steps(options: list[str]) -> dict[str, int]:
    steps = {}
    for option in options:
        path, _, step = option.rpartition("=")
        if not path or not step.isdecimal():
            raise typer.BadParameter(f"{option!r} is not PATH=STEP, such as last.pt=5000", param_hint="--step")
        steps[path] = int(step)
    return steps


def _as_object(adoption: Adoption, resume: Path | None, samples_per_step: int | None) -> dict[str, object]:
    return {
        "adopted": adoption.adopted,
        "torn": adoption.torn,
        "unchecked": adoption.unchecked,
        "known_before": adoption.num_known,
        "not_understood": adoption.not_understood,
        "step_sources": adoption.step_sources,
        "forgotten": adoption.forgotten,
        "is_position_known": samples_per_step is not None,
        "resume": None if resume is None else str(resume),
    }


def _say(adoption: Adoption, folder: Path, resume: str | None, samples_per_step: int | None) -> None:
    for each in adoption.adopted:
        files = adoption.unchecked.get(each.checkpoint_path, ())
        doubt = f" ({', '.join(files)}: no checksum inside, only the size was checked)" if files else ""
        size = as_bytes(each.num_bytes or 0)
        source = adoption.step_sources.get(each.checkpoint_path)
        origin = "" if source is None else f"; the step is from {source}"
        say(f"  step {each.checkpoint_step:,}: {each.checkpoint_path} ({size}): intact{doubt}{origin}")
    for torn in adoption.torn:
        say(f"  step {torn.step:,}: {torn.path}: {torn.reason}; skipped")
    for path, reason in list(adoption.not_understood.items())[:_MAX_LISTED]:
        say(f"  {path}: {reason}; skipped")
    if len(adoption.not_understood) > _MAX_LISTED:
        say(f"  … and {len(adoption.not_understood) - _MAX_LISTED:,} more, which --json lists")
    for path in adoption.forgotten:
        say(f"  {path}: gone; forgotten")
    say(
        f"{folder}: {len(adoption.adopted)} checkpoints adopted, {adoption.num_known} already known, "
        f"{len(adoption.torn)} torn{_not_understood(adoption)}."
    )
    if adoption.adopted and samples_per_step is None:
        say("Their position in the data is unknown and recorded as 0: pass --samples-per-step to compute it.")
    if resume is not None:
        say(f"The next start in {folder} resumes from {resume}.")


def _not_understood(adoption: Adoption) -> str:
    count = len(adoption.not_understood)
    return f", {count:,} not understood" if count else ""
