"""Text to token ids."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from crashproof.disk.atomic import write_bytes_atomically, write_folder_atomically
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.errors import ConfigError

__all__ = [
    "END_OF_TEXT",
    "PADDING",
    "is_kept_tokenizer",
    "keep_tokenizer",
    "load_tokenizer",
    "tokenizer_hash",
    "trained_tokenizer",
]

END_OF_TEXT = "<|end|>"
PADDING = "<|pad|>"
_ORIGIN_FILE = "crashproof.json"


def trained_tokenizer(documents: list[str], *, vocab_size: int, folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the documents; trained once, then read from `folder`.

    It is read back even the first time, so that the first start and every later one use the same bytes.
    """
    if not folder.is_dir():
        tokenizer = _train(documents, vocab_size)
        with write_folder_atomically(folder) as partial:
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


def keep_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, *, disk: Disk = REAL_DISK) -> None:
    """Write a tokenizer whole into a folder that does not exist, with the hash of the one that was given."""
    with write_folder_atomically(folder, disk=disk) as partial:
        tokenizer.save_pretrained(str(partial))
        write_bytes_atomically(partial / _ORIGIN_FILE, _origin(tokenizer), disk=disk)


def is_kept_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether this very tokenizer was kept in a folder."""
    try:
        return (folder / _ORIGIN_FILE).read_bytes() == _origin(tokenizer)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _origin(tokenizer: PreTrainedTokenizerFast) -> bytes:
    return msgspec.json.encode({"tokenizer_sha256": tokenizer_hash(tokenizer)})


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
