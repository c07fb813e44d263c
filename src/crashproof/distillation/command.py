"""Run a trainer from the command line.

What the settings alone can tell is told before PyTorch and transformers are imported, which takes seconds.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from crashproof.distillation.settings.load import files_and_overrides, load_config
from crashproof.distillation.settings.recipes.registry import CONFIGS
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.start_checks import require_startable
from crashproof.errors import ConfigError, CrashproofError
from crashproof.pytorch.exit_codes import exit_code_of
from crashproof.pytorch.interrupts import Interrupts, StopRequested
from crashproof.rules.secrets.texts import without_secrets

__all__ = ["main"]

log = logging.getLogger("crashproof")


def main(recipe: str, arguments: Sequence[str] | None = None) -> int:
    """Train, and return the exit code: 0 complete, 2 a reported error, 75 start the same command again.

    An unexpected exception is not caught: it ends the process with its traceback.
    """
    options = _parser(recipe).parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # It logs every request as INFO.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    # Stop signals are caught until the reason is out: torchrun sends one as soon as another process has ended.
    with Interrupts() as interrupts:
        try:
            return _train(recipe, options, interrupts)
        except CrashproofError as error:
            sys.stderr.write(f"{recipe}: {without_secrets(str(error))}\n")
            return exit_code_of(error)
        except StopRequested as error:
            log.info("Stopped before training began. Start the same command again.")
            return exit_code_of(error)


def _parser(recipe: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m training.distill_{recipe}",
        description="Train a student. After a crash or a kill, start the same command again: it resumes exactly.",
        epilog="Exit codes: 0 complete, 2 error, 75 stopped by a signal, a lost rank or an unreachable teacher "
        "(start the same command again).",
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="override single config keys")
    parser.add_argument("--config", nargs="+", type=Path, default=[], metavar="YAML", help="configs; later files win")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="auto: from the newest intact checkpoint; never: archive the old session, start anew; or a checkpoint",
    )
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps of the whole run (train.steps)")
    parser.add_argument(
        "--eval-every",
        type=int,
        default=None,
        metavar="N",
        help="optimizer steps between evaluations on held-out data (progress.eval_every; see data.held_out)",
    )
    return parser


def _train(recipe: str, options: argparse.Namespace, interrupts: Interrupts) -> int:
    @cache
    def load() -> RunConfig:
        return _load_config(recipe, options)

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # Several processes tell each other of an error, and need PyTorch for that.
        require_startable(load(), options.output_dir, resume=options.resume, environment=os.environ)
    # PyTorch and transformers, once there is something to train.
    from crashproof.distillation.trainer import train

    return train(recipe, load, output_dir=options.output_dir, resume=options.resume, interrupts=interrupts)


def _load_config(recipe: str, options: argparse.Namespace) -> RunConfig:
    files, overrides = files_and_overrides(options.config)
    overrides += options.overrides
    for name, value in (("train.steps", options.steps), ("progress.eval_every", options.eval_every)):
        if value is not None:
            overrides.append(f"{name}={value}")
    config = load_config(CONFIGS[recipe], files, overrides)
    if config.progress.eval_every is not None and config.evaluates_nothing:
        raise ConfigError(
            "progress.eval_every is set, and nothing is held out to evaluate on.",
            hint="Set data.held_out to a share, such as 0.1, data.eval_path to a file, or data.eval_split.",
        )
    return config
