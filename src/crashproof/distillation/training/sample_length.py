"""How long samples may be."""

from __future__ import annotations

import logging
from typing import TypeVar

from crashproof.distillation.data.captured_folder import CapturedFolder
from crashproof.distillation.models.causal_lm import require_length
from crashproof.distillation.models.model_folder import ModelFolder
from crashproof.distillation.settings.run import RunConfig

__all__ = ["with_max_length"]

log = logging.getLogger("crashproof")

_MOST_BY_DEFAULT = 4096
"""Tokens; the memory of a step grows with its longest sample, and models accept a hundred times as many."""


ConfigT = TypeVar("ConfigT", bound=RunConfig)


def with_max_length(config: ConfigT) -> ConfigT:
    """The config with its `data.max_length`: the one that is set, else what the models' folders allow.

    Only configs and headers are read, so unusable folders are refused before anything is tokenized, trained or paid.

    Raises:
        ConfigError: A folder holds no model that can be used, or a model accepts fewer tokens than are set.
        DataError: Captured logits cannot be read.
    """
    folders = _model_folders(config)
    limits = {title: most for title, each in folders.items() if (most := each.most_positions) is not None}
    is_set = "max_length" in config.data.model_fields_set
    captured = None if is_set else _captured_length(config)
    if is_set or captured is not None:
        chosen = captured or config.data.max_length
        for title, folder in folders.items():
            require_length(folder.config, title, chosen)
        source = "that of the captured logits"
    elif limits:
        title = min(limits, key=lambda each: limits[each])
        chosen = min(limits[title], _MOST_BY_DEFAULT)
        source = f"what the {title} accepts" if chosen == limits[title] else "the models accept more, if it is set"
    else:
        chosen, source = config.data.max_length, "the default"
    if not is_set:
        log.info("data.max_length is %s tokens: %s.", f"{chosen:,}", source)
    return config.model_copy(update={"data": config.data.model_copy(update={"max_length": chosen})})


def _model_folders(config: RunConfig) -> dict[str, ModelFolder]:
    """The folders of the models that a run uses, by what it calls them."""
    paths = {"student": config.student.path}
    if config.teacher.kind == "local" and config.divergence is not None:
        paths["teacher"] = config.teacher.path
    return {title: ModelFolder.read(path) for title, path in paths.items() if path is not None}


def _captured_length(config: RunConfig) -> int | None:
    """The length that logits were captured with: other samples would not be theirs."""
    if config.teacher.kind != "logits" or config.teacher.path is None:
        return None
    manifest = CapturedFolder(config.teacher.path).read_manifest()
    return None if manifest is None else manifest.captured_from.max_length
