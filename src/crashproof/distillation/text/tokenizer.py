"""Tokenizers: training, loading and encoding."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from crashproof.disk.atomic import write_bytes_atomically, write_folder_atomically
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.errors import ConfigError
from crashproof.samples.problems import problem_with_text

__all__ = [
    "END_OF_TEXT",
    "PADDING",
    "EncodedText",
    "encode_document",
    "encode_text",
    "end_id",
    "is_kept_tokenizer",
    "keep_tokenizer",
    "load_tokenizer",
    "opening_ids",
    "opening_text",
    "padding_id",
    "tokenizer_hash",
    "train_tokenizer",
]

log = logging.getLogger("crashproof")

END_OF_TEXT = "<|end|>"
PADDING = "<|pad|>"
_ORIGIN_FILE = "crashproof.json"


class EncodedText(NamedTuple):
    """The tokens of a text, without special tokens added."""

    ids: list[int]
    spans: list[tuple[int, int]]
    """The characters that each token covers."""

    def overlapping(self, spans: Iterable[tuple[int, int]]) -> list[bool]:
        """Which tokens cover a character of one of these spans."""
        wanted = list(spans)
        return [any(start < wanted_end and end > begin for begin, wanted_end in wanted) for start, end in self.spans]


def train_tokenizer(documents: list[str], *, vocab_size: int, folder: Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the documents, or load the one that `folder` already holds.

    It is loaded from the folder even after training, so that the first start and every later one use the same bytes.
    """
    if not folder.is_dir():
        tokenizer = _train(documents, vocab_size)
        with write_folder_atomically(folder) as partial:
            tokenizer.save_pretrained(str(partial))
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a local `transformers` folder.

    Raises:
        ConfigError: The folder contains none.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # The library behind it raises plain `Exception` for a file that it cannot read.
        raise ConfigError(
            f"{folder} contains no tokenizer that transformers can load.", hint="Pass a local model folder."
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"The tokenizer in {folder} does not tell which characters its tokens cover.",
            hint="Save it with a tokenizer.json, as AutoTokenizer.from_pretrained(…).save_pretrained(…) does.",
        )
    if tokenizer.eos_token_id is None:
        _add_end(tokenizer, folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    loaded: PreTrainedTokenizerFast = tokenizer
    return loaded


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of everything that determines its output."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> EncodedText:
    """The tokens of a text and the characters that each covers.

    Raises:
        ValueError: It is no text that UTF-8 can hold.
    """
    if problem := problem_with_text(text):
        raise ValueError(problem)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return EncodedText(encoded["input_ids"], encoded["offset_mapping"])


def encode_document(tokenizer: PreTrainedTokenizerFast, text: str) -> EncodedText:
    """The same, behind the special tokens that the tokenizer itself puts before a text, unless it begins with them.

    What it puts behind a text is left out: the caller decides whether the text has ended.
    """
    plain, opening = encode_text(tokenizer, text), opening_ids(tokenizer)
    if plain.ids[: len(opening)] == opening:
        return plain
    return EncodedText([*opening, *plain.ids], [*[(0, 0)] * len(opening), *plain.spans])


def opening_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The special tokens that the tokenizer's post-processor puts before a text, such as `<bos>`."""
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    processed: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
    starts = range(len(processed) - len(plain) + 1)
    place = next((start for start in starts if processed[start : start + len(plain)] == plain), 0)
    return processed[:place]


def opening_text(tokenizer: PreTrainedTokenizerFast) -> str:
    """How `opening_ids` are spelled."""
    return "".join(tokenizer.convert_ids_to_tokens(opening_ids(tokenizer)))


def end_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of the end-of-text token.

    Raises:
        ConfigError: The tokenizer has none.
    """
    found = tokenizer.eos_token_id
    if not isinstance(found, int):
        raise ConfigError(
            f"The tokenizer {tokenizer.name_or_path or 'in memory'} has no end-of-text token, and the end of a text "
            "is to be learned.",
            hint="Name it as eos_token in tokenizer_config.json.",
        )
    return found


def padding_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of the padding token; 0 if the tokenizer has none."""
    return int(tokenizer.pad_token_id or 0)


def keep_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, *, disk: Disk = REAL_DISK) -> None:
    """Write a tokenizer atomically to a new folder, together with its hash."""
    with write_folder_atomically(folder, disk=disk) as partial:
        tokenizer.save_pretrained(str(partial))
        write_bytes_atomically(partial / _ORIGIN_FILE, _origin(tokenizer), disk=disk)


def is_kept_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether `keep_tokenizer` wrote exactly this tokenizer to the folder."""
    try:
        return (folder / _ORIGIN_FILE).read_bytes() == _origin(tokenizer)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _add_end(tokenizer: Any, folder: Path) -> None:
    """Take the end-of-text token that the model names, if the tokenizer names none."""
    for name in ("generation_config.json", "config.json"):
        try:
            named = msgspec.json.decode((folder / name).read_bytes()).get("eos_token_id")
        except (AttributeError, OSError, msgspec.DecodeError):
            # A folder of a tokenizer alone has no such file.
            continue
        first = named[0] if isinstance(named, list) and named else named
        if isinstance(first, int) and 0 <= first < len(tokenizer):
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(first)
            log.info("The tokenizer in %s names no end of text; %s is from %s.", folder, tokenizer.eos_token, name)
            return


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
