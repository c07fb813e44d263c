"""Write the trained student as a model's folder."""

from __future__ import annotations

import logging
from copy import deepcopy
from pathlib import Path

import torch
from transformers import PreTrainedModel

from crashproof.distillation.models.causal_lm import convert, save_folder, save_model, write_model
from crashproof.distillation.models.config_file import why
from crashproof.distillation.models.lora import has_adapters, save_adapter, without_adapters
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.training.gathering import GatheredWeights
from crashproof.distillation.training.preparation import Prepared, new_student
from crashproof.errors import CrashproofError
from crashproof.pytorch.ranks import Ranks

__all__ = ["write_sharded_student", "write_student"]

log = logging.getLogger("crashproof")

_LARGEST_FILE = "5GB"
"""Of a sharded student: as much is in the main process's memory at a time, or one weight if that is larger."""


def write_student(prepared: Prepared, folder: Path, *, origin: dict[str, str | int]) -> None:
    """Write a student that is whole in this process; it cannot be used afterwards."""
    student = prepared.recipe.student
    save_model(student, prepared.tokenizer, folder, origin=origin, dtype=prepared.saved_dtype)


def write_sharded_student(
    prepared: Prepared, config: RunConfig, ranks: Ranks, folder: Path, *, origin: dict[str, str | int]
) -> None:
    """Write a student of which each process holds a shard; all call it, and the main one writes, file by file.

    Raises:
        DiskFull, StorageUnwritable: On the main process.
        RankLost: Another process died, or did not take part within the limit.
    """
    weights = GatheredWeights(prepared.recipe.student, ranks)
    if not ranks.is_main:
        weights.follow()
        return
    writer = _Writer(prepared, config, weights)
    try:
        save_folder(writer.write, prepared.tokenizer, folder, origin=origin)
    finally:
        writer.release_others()


class _Writer:
    """Fills a folder with the student of the main process and of all that follow it."""

    def __init__(self, prepared: Prepared, config: RunConfig, weights: GatheredWeights) -> None:
        self._prepared = prepared
        self._config = config
        self._weights = weights
        self._are_waiting = True

    def write(self, partial: Path) -> None:
        """Write config and weights; the others are let go before anything is synced."""
        try:
            self._write_file_by_file(partial)
        except (CrashproofError, OSError, MemoryError):
            raise
        except Exception as error:  # Whatever transformers does with weights that it cannot look at.
            log.warning(
                "The student cannot be written file by file (%s): the main process gathers all of it first.",
                why(error),
            )
            self._write_whole(partial)
        self.release_others()

    def release_others(self) -> None:
        """Let the other processes end, once."""
        if self._are_waiting:
            self._are_waiting = False
            self._weights.end()

    def _write_file_by_file(self, partial: Path) -> None:
        student = self._prepared.recipe.student
        if has_adapters(student):
            save_adapter(student, partial, self._weights.deferred())
        plain = _without_weights(student)
        convert(plain, self._prepared.saved_dtype)
        merged = self._weights.merged()
        tensors = {name: merged[name].to(like.dtype) for name, like in plain.state_dict().items()}
        plain.save_pretrained(str(partial), state_dict=tensors, max_shard_size=_LARGEST_FILE)

    def _write_whole(self, partial: Path) -> None:
        config = self._config
        student = new_student(config.student, self._prepared.tokenizer, config.data.max_length)
        kept = student.state_dict().keys() & self._weights.deferred().keys()
        student.load_state_dict({name: self._weights.weight(name) for name in sorted(kept)}, strict=False)
        write_model(student, partial, dtype=self._prepared.saved_dtype)


def _without_weights(student: PreTrainedModel) -> PreTrainedModel:
    """A student without adapters and without memory, that is written as it would be."""
    within = without_adapters(student)
    with torch.device("meta"):
        plain = type(within)(deepcopy(within.config))
    plain.generation_config = within.generation_config
    # How the names and shapes of its file were changed when it was read.
    conversions = getattr(within, "_weight_conversions", None)
    if conversions is not None:
        plain._weight_conversions = conversions
    return plain
