"""Text to token ids."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from holdfast.disk.atomic import write_whole_folder
from holdfast.errors import ConfigError

__all__ = ["END_OF_TEXT", "PADDING", "load_tokenizer", "tokenizer_hash", "trained_tokenizer"]

END_OF_TEXT = "<|end|>"
PADDING = "<|pad|>"


def trained_tokenizer(documents: list[str], *, vocab_size: int, folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the documents; trained once, then read from `folder`.

    It is read back even the first time, so that the first start and every later one use the same bytes.
    """
    if not folder.is_dir():
        tokenizer = _train(documents, vocab_size)
        with write_whole_folder(folder) as partial:
            tokenizer.save_pretrained(str(partial))
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a local `transformers` folder.

    Raises:
        ConfigError: there is none.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} holds no tokenizer that transformers can read.", hint="Pass a local model folder."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    result: PreTrainedTokenizerFast = tokenizer
    return result


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of everything that decides its output."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def _train(documents: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PADDING, END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it so.
        tokenizer_object=tokenizer, pad_token=PADDING, eos_token=END_OF_TEXT
    )
