"""Take over the settings of an HF Trainer."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from transformers import Trainer

from crashproof.errors import ConfigError
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.rules.retention import KeepLatest, RetentionRule
from crashproof.tracking.settings import TrackerSettings

__all__ = ["require_usable", "with_rule"]

log = logging.getLogger("crashproof")

_NAME = re.compile(r"checkpoint-(?P<step>\d+)")
_DEFAULT_FOLDERS = ("trainer_output", "tmp_trainer")
"""The default output folders of transformers."""


def require_usable(trainer: Trainer) -> Path:
    """Check that the trainer can be recorded, and return its output folder."""
    args = trainer.args
    if not args.output_dir or args.output_dir in _DEFAULT_FOLDERS:
        raise ConfigError(
            f"The Trainer has no output_dir of its own ({args.output_dir or 'none'} is what transformers takes where "
            "none is named).",
            hint='Pass TrainingArguments(output_dir="runs/my-run"), the same at every start.',
        )
    if args.enable_jit_checkpoint:
        raise ConfigError(
            "enable_jit_checkpoint saves on SIGTERM, and so does crashproof.", hint="Leave enable_jit_checkpoint out."
        )
    if args.save_only_model:
        log.warning("save_only_model: without optimizer and random states no resume is exact.")
    if args.train_sampling_strategy == "group_by_length":
        log.warning(
            "group_by_length draws a new order of the epoch on a resume: some data come twice, some not at all."
        )
    return Path(args.output_dir)


def with_rule(settings: TrackerSettings, trainer: Trainer) -> TrackerSettings:
    """Take over the deletion of checkpoints: `transformers` deletes before the new one is verified."""
    rule, limit = settings.keep, trainer.args.save_total_limit
    if limit is not None and limit > 0:
        rule = KeepLatest(limit) if rule is None else rule | KeepLatest(limit)
        if trainer.is_world_process_zero():
            log.info(
                "crashproof applies save_total_limit=%d: it deletes an old checkpoint once a newer one has been "
                "verified, and keeps the best one.",
                limit,
            )
    trainer.args.save_total_limit = None
    return settings if rule is None else dataclasses.replace(settings, keep=rule | _KeepBestModel(trainer))


class _KeepBestModel(RetentionRule):
    """Keep the checkpoint that a Trainer would load as the best one."""

    __slots__ = ("_trainer",)

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def choose(self, checkpoints: Iterable[CheckpointMetadata]) -> set[int]:
        """The one that the Trainer names, which may have been evaluated between two checkpoints."""
        best = self._trainer.state.best_model_checkpoint
        name = _NAME.fullmatch(Path(best).name) if best else None
        return {each.checkpoint_step for each in checkpoints if name and each.checkpoint_step == int(name["step"])}
