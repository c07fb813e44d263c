"""Take up checkpoints that other code wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from crashproof.cli.output import print_json, say
from crashproof.formatting import as_bytes
from crashproof.tracking.adopt import Adoption, adopt_checkpoints
from crashproof.tracking.context import get_recovery_checkpoint

__all__ = ["adopt"]

EXIT_SOME_TORN = 1


def adopt(
    folder: Annotated[Path, typer.Argument(help="The folder that the checkpoints lie in.", metavar="DIR")],
    samples_per_step: Annotated[
        int | None, typer.Option(min=1, help="Samples of one optimizer step: says where in the data each one stands.")
    ] = None,
    forget_gone: Annotated[
        bool, typer.Option("--forget-gone", help="Forget adopted ones that were taken away, where a newer is whole.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Build a run around a folder of checkpoints that other code wrote.

    Taken up are files such as checkpoint_1000.pt and folders of transformers,
    accelerate and torch.distributed.checkpoint. Each is read to its last byte
    first; one that is torn is named and left out. Nothing is moved or changed
    but DIR/progress. Start it again at any time: it adds what is new.

    The next start in DIR, with whatever config, resumes from the newest one.

    Exit codes: 0 all were whole; 1 some are torn; 2 none could be taken up, or
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


def _as_object(adoption: Adoption, resume: Path | None, samples_per_step: int | None) -> dict[str, Any]:
    return {
        "adopted": [msgspec.to_builtins(each) for each in adoption.adopted],
        "torn": [{"step": each.step, "path": each.path, "reason": each.reason} for each in adoption.torn],
        "unchecked": {path: list(files) for path, files in adoption.unchecked.items()},
        "known_before": adoption.num_known,
        "forgotten": adoption.forgotten,
        "is_position_known": samples_per_step is not None,
        "resume": None if resume is None else str(resume),
    }


def _say(adoption: Adoption, folder: Path, resume: str | None, samples_per_step: int | None) -> None:
    for each in adoption.adopted:
        files = adoption.unchecked.get(each.checkpoint_path, ())
        doubt = f" ({', '.join(files)}: no checksum inside, only the size could be checked)" if files else ""
        say(
            f"  step {each.checkpoint_step:,}: {each.checkpoint_path} ({as_bytes(each.num_bytes or 0)}): whole{doubt}"
        )
    for torn in adoption.torn:
        say(f"  step {torn.step:,}: {torn.path}: {torn.reason}; left as it is")
    for path in adoption.forgotten:
        say(f"  {path}: was taken away; forgotten")
    say(
        f"{folder}: {len(adoption.adopted)} checkpoints adopted, {adoption.num_known} known before, "
        f"{len(adoption.torn)} torn."
    )
    if adoption.adopted and samples_per_step is None:
        say("Where in the data they stand is unknown, and recorded as 0: --samples-per-step says it.")
    if resume is not None:
        say(f"The next start in {folder} resumes from {resume}.")
