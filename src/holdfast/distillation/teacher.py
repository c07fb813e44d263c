"""The model to learn from."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from holdfast.distillation.data import TokenizedData
from holdfast.distillation.display import shown_progress
from holdfast.distillation.losses import cross_entropy_sum, next_token_targets
from holdfast.distillation.models import ModelShape, load_model, new_model, save_model
from holdfast.distillation.schedule import learning_rate_at
from holdfast.distillation.tokenizer import tokenizer_hash
from holdfast.pytorch.interrupts import Interrupts
from holdfast.pytorch.random_state import seed_everything
from holdfast.pytorch.sampler import DataOrder

__all__ = ["TeacherConfig", "teacher_model"]

log = logging.getLogger("holdfast")

_FORMAT = 1


class TeacherConfig(ModelShape):
    """`teacher`: `builtin` trains a small one on the data, once; `local` reads a `transformers` folder."""

    kind: Literal["builtin", "local"] = "builtin"
    path: Path | None = None
    d_model: int = Field(default=128, ge=2)
    num_layers: int = Field(default=3, ge=1)
    steps: int = Field(default=250, ge=1)
    """Of the built-in teacher's own training."""
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)
    seed: int = 1

    @model_validator(mode="after")
    def _needs_a_path_to_be_local(self) -> TeacherConfig:
        if (self.kind == "local") != (self.path is not None):
            raise ValueError("kind: local and a path belong together")
        return self


def teacher_model(
    config: TeacherConfig,
    data: TokenizedData,
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_length: int,
    cache: Path,
    interrupts: Interrupts,
) -> PreTrainedModel:
    """The teacher, frozen; a built-in one is trained once and read from `cache` ever after, the first time too.

    Raises:
        ConfigError: the local folder holds no model.
        StopRequested: somebody asked to stop while it was being trained.
    """
    if config.path is not None:
        return _frozen(load_model(config.path))
    parts = (_FORMAT, config.model_dump_json(), _digest(data), tokenizer_hash(tokenizer), max_length)
    folder = cache / f"teacher-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        model = _trained(config, data, tokenizer, max_length, interrupts)
        save_model(model, tokenizer, folder, origin={"teacher": folder.name})
    return _frozen(load_model(folder))


def _trained(
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
    model.train()
    log.info("Training the built-in teacher once: %s parameters.", f"{model.num_parameters():,}")
    with shown_progress("teacher", total_steps=config.steps) as shown:
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
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            loss = cross_entropy_sum(logits, next_token_targets(batch.labels)) / max(1, batch.num_counted())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it so.
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            shown.advance(step, loss=loss.item())
    return model


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    model.train(False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _digest(data: TokenizedData) -> str:
    digest = hashlib.sha256()
    for tensor in (data.input_ids, data.labels, data.starts):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
