"""Settings of the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from crashproof.distillation.settings.api_teacher import ApiTeacherFields
from crashproof.distillation.settings.models import ModelShape

__all__ = ["TeacherConfig"]

_WITH_A_PATH = frozenset({"local", "logits"})
_WITHOUT_A_MODEL = frozenset({"api", "logits", "logprobs"})


class TeacherConfig(ModelShape, ApiTeacherFields):
    """`teacher`: the source of the student's targets.

    `builtin` trains a small model on the data once; `local` loads a `transformers` folder; `logits` reads the output
    of `crashproof capture-logits` and needs no model; `logprobs` takes the field of that name from the lines of
    `data.path`, as `crashproof generate --logprobs` writes it; `api` asks a model over HTTP and stores its answers.
    """

    kind: Literal["builtin", "local", "logits", "logprobs", "api"] = "builtin"
    path: Path | None = None
    d_model: int = Field(default=128, ge=2)
    num_layers: int = Field(default=3, ge=1)
    shared_tokens_only: bool = False
    """Accept a student whose tokenizer differs in a few tokens; the divergence leaves those out, and the student's
    tokenizer reads the data."""
    steps: int = Field(default=250, ge=1)
    """Optimizer steps of the built-in teacher's training."""
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)
    seed: int = 1

    @property
    def is_a_model(self) -> bool:
        """Whether the teacher is a model in this process."""
        return self.kind not in _WITHOUT_A_MODEL

    @model_validator(mode="after")
    def _is_paid_only_if_it_is_an_api(self) -> TeacherConfig:
        if self.kind == "api" and not self.model:
            raise ValueError("kind: api needs the name of the model at the API as model")
        given = sorted(self.model_fields_set & ApiTeacherFields.model_fields.keys())
        if self.kind != "api" and given:
            raise ValueError(f"{given[0]} belongs to kind: api, and the kind is {self.kind}")
        return self

    @model_validator(mode="after")
    def _has_a_path_if_its_kind_needs_one(self) -> TeacherConfig:
        if (self.kind in _WITH_A_PATH) != (self.path is not None):
            # A path alone most likely belongs to a model.
            kind = self.kind if self.kind in _WITH_A_PATH else "local"
            raise ValueError(f"kind: {kind} and a path belong together")
        return self
