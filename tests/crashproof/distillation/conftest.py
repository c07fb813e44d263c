"""A tokenizer that is trained in a moment, and models that fit it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.models.causal_lm import new_model
from crashproof.distillation.settings.models import ModelShape
from crashproof.distillation.text.tokenizer import train_tokenizer

TEXTS = ["The quick brown fox jumps over the lazy dog. " * 5, "What is two and two? Two and two is four. " * 5]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "tiny"
    train_tokenizer(TEXTS, vocab_size=270, folder=folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    return train_tokenizer([], vocab_size=270, folder=tokenizer_folder)


@pytest.fixture
def make_model(tokenizer: PreTrainedTokenizerFast) -> Callable[..., PreTrainedModel]:
    """A new model of a shape; the same weights for the same seed."""

    def make(seed: int = 0, **shape: Any) -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tiny = {"d_model": 16, "num_layers": 2, "num_heads": 2}
            return new_model(ModelShape(**(tiny | shape)), tokenizer=tokenizer, max_length=32)

    return make
