"""A tokenizer that is trained in a moment."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.text.tokenizer import train_tokenizer

TEXTS = ["The quick brown fox jumps over the lazy dog. " * 5, "What is two and two? Two and two is four. " * 5]


@pytest.fixture(scope="session")
def field_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("field") / "tokenizer"
    train_tokenizer(TEXTS, vocab_size=270, folder=folder)
    return folder


@pytest.fixture
def field_tokenizer(field_tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    return train_tokenizer([], vocab_size=270, folder=field_tokenizer_folder)
