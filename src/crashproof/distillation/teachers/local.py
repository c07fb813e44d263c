"""Teachers that are local models."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.data.text_data import TokenizedData
from crashproof.distillation.display import show_progress
from crashproof.distillation.models.causal_lm import new_model, save_model
from crashproof.distillation.models.making import WHOLE_MODELS, ModelMaker
from crashproof.distillation.models.split_model import SplitModel
from crashproof.distillation.schedule import learning_rate_at
from crashproof.distillation.settings.models import ModelShape
from crashproof.distillation.settings.teacher import TeacherConfig
from crashproof.distillation.text.tokenizer import tokenizer_hash
from crashproof.pytorch.interrupts import Interrupts
from crashproof.pytorch.random_state import seed_everything
from crashproof.pytorch.sampler import DataOrder

__all__ = ["load_teacher", "prepare_teacher"]

log = logging.getLogger("crashproof")

_FORMAT = 1
_CHUNK_TOKENS = 512
_DECIDES_ITS_TRAINING = {*ModelShape.model_fields, "kind", "path", "steps", "batch_size", "learning_rate", "seed"}
"""Of a built-in teacher; any other key must not cause it to be trained again."""


def prepare_teacher(
    config: TeacherConfig,
    data: TokenizedData,
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_length: int,
    cache: Path,
    interrupts: Interrupts,
) -> Path:
    """Return the folder of the teacher's model; a built-in one is first trained, once, into `cache`.

    Raises:
        StopRequested: a stop was requested while it was being trained.
    """
    if config.path is not None:
        return config.path
    decides = config.model_dump_json(include=_DECIDES_ITS_TRAINING)
    parts = (_FORMAT, decides, data.sha256(), tokenizer_hash(tokenizer), max_length)
    folder = cache / f"teacher-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        model = _train(config, data, tokenizer, max_length, interrupts)
        save_model(model, tokenizer, folder, origin={"teacher": folder.name})
    return folder


def load_teacher(folder: Path, models: ModelMaker = WHOLE_MODELS) -> PreTrainedModel:
    """Read the model of a folder, and freeze it.

    Raises:
        ConfigError: the folder holds none.
    """
    model = models.read(folder)
    model.train(False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _train(
    config: TeacherConfig,
    data: TokenizedData,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    interrupts: Interrupts,
) -> PreTrainedModel:
    seed_everything(config.seed)
    model = new_model(config, tokenizer=tokenizer, max_length=max_length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    order = DataOrder(num_samples=len(data), seed=config.seed)
    split = SplitModel(model)
    model.train()
    log.info("Training the built-in teacher (%s parameters); later starts reuse it.", f"{model.num_parameters():,}")
    with show_progress("teacher", total_steps=config.steps) as display:
        for step in range(1, config.steps + 1):
            interrupts.raise_if_requested()
            batch = data.batch(order.indices((step - 1) * config.batch_size, config.batch_size))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(
                    step,
                    peak=config.learning_rate,
                    warmup_steps=max(1, config.steps // 20),
                    schedule_steps=config.steps,
                    final_fraction=0.1,
                )
            values = split.cross_entropies(batch.input_ids, batch.targets, batch.rows, chunk_tokens=_CHUNK_TOKENS)
            loss = values.sum() / max(1, batch.num_counted())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it so.
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            display.advance(step, loss=loss.item)
    return model
