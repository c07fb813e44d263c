"""Write down what a teacher says."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from crashproof.cli.output import say
from crashproof.formatting import as_bytes

__all__ = ["capture_logits"]

log = logging.getLogger("crashproof")


def capture_logits(
    config: Annotated[list[Path], typer.Option("--config", help="Of a trainer; later files win.", metavar="YAML")],
    out: Annotated[Path, typer.Option("--out", help="The folder to fill, or to go on filling.", metavar="DIR")],
    more: Annotated[
        list[str] | None,
        typer.Argument(help="More config files, and overrides of single keys.", metavar="key.path=value"),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Entries kept of each distribution, the largest ones.")] = 32,
    temperature: Annotated[
        float | None, typer.Option(help="Softens the distributions; by default the config's loss.temperature.")
    ] = None,
    shard_tokens: Annotated[int, typer.Option(help="Predicted tokens of one file.")] = 1 << 18,
    batch_size: Annotated[int, typer.Option(help="Samples of one forward pass.")] = 8,
) -> None:
    """Keep the largest entries of a teacher's next-token distributions, for students to learn from without it.

    Train with teacher.kind=logits teacher.path=DIR loss.intermediate=0. Kill it and start the same command again: it
    goes on behind the last whole shard, and captures damaged ones anew. Exits with 75 if a signal stopped it.
    Example: crashproof capture-logits --config configs/quickstart.yaml --out logits
    """
    # The other commands start at once, and without PyTorch.
    from crashproof.distillation.display import hide_other_bars
    from crashproof.distillation.recipes.kd import KdConfig
    from crashproof.distillation.settings.load import files_and_overrides, load_config
    from crashproof.distillation.settings.section import validated
    from crashproof.distillation.training.capture import CaptureSettings
    from crashproof.distillation.training.capture import capture_logits as capture
    from crashproof.pytorch.interrupts import EXIT_PREEMPTED, Interrupts, StopRequested

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    hide_other_bars()
    run_config = load_config(KdConfig, *files_and_overrides([*config, *(more or ())]))
    settings = {
        "top_k": top_k,
        "temperature": run_config.loss.temperature if temperature is None else temperature,
        "shard_tokens": shard_tokens,
        "batch_size": batch_size,
    }
    try:
        with Interrupts() as interrupts:
            manifest = capture(run_config, validated(CaptureSettings, settings), out, interrupts=interrupts)
    except StopRequested as stopped:
        log.info("Stopped by %s. Start the same command again.", stopped)
        raise typer.Exit(EXIT_PREEMPTED) from None
    num_bytes, num_rows = manifest.num_bytes(), manifest.num_rows()
    say(
        f"{out} is complete: {top_k} entries of each of {num_rows:,} tokens in {as_bytes(num_bytes)}, "
        f"{num_bytes / num_rows / top_k:.2f} bytes an entry."
    )
