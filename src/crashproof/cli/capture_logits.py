"""Capture a teacher's logits."""

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
    config: Annotated[list[Path], typer.Option("--config", help="Trainer config; later files win.", metavar="YAML")],
    out: Annotated[Path, typer.Option("--out", help="Output folder; an incomplete one is continued.", metavar="DIR")],
    more: Annotated[
        list[str] | None,
        typer.Argument(help="Further config files, and overrides of single keys.", metavar="key.path=value"),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Number of entries to keep per distribution, largest first.")] = 32,
    temperature: Annotated[float | None, typer.Option(help="Temperature (default: loss.temperature).")] = None,
    shard_tokens: Annotated[int, typer.Option(help="Predicted tokens per output file.")] = 1 << 18,
    batch_size: Annotated[int, typer.Option(help="Samples per forward pass.")] = 8,
) -> None:
    """Capture the largest entries of a teacher's next-token distributions, to train students without the teacher.

    Then train with teacher.kind=logits teacher.path=DIR loss.intermediate=0.
    After a kill, start the same command again: it continues after the last
    complete shard and captures damaged shards again.

    Exit codes: 0 complete; 2 error; 75 stopped by a signal, start it again.

    Example: crashproof capture-logits --config configs/quickstart.yaml --out logits
    """
    # Imported here so that the other commands start without them, and PyTorch once the config is checked.
    from crashproof.distillation.settings.load import files_and_overrides, load_config
    from crashproof.distillation.settings.recipes.kd import KdConfig

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    run_config = load_config(KdConfig, *files_and_overrides([*config, *(more or ())]))

    from crashproof.distillation.display import hide_other_bars
    from crashproof.distillation.settings.section import validated
    from crashproof.distillation.training.capture import CaptureSettings
    from crashproof.distillation.training.capture import capture_logits as capture
    from crashproof.pytorch.interrupts import EXIT_PREEMPTED, Interrupts, StopRequested

    hide_other_bars()
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
        f"{num_bytes / num_rows / top_k:.2f} bytes per entry."
    )
