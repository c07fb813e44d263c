"""Text to tokens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from holdfast.distillation.chat import CHAT_TEMPLATE
from holdfast.errors import ConfigError, ModelMismatch

__all__ = ["has_tokenizer", "load_tokenizer", "require_same_vocabulary", "train_tokenizer"]

_END = "<|end|>"
_PADDING = "<|padding|>"
_MOST_NAMED = 3


def train_tokenizer(folder: Path, texts: Iterable[str], *, vocab_size: int) -> None:
    """Train a byte-level BPE tokenizer, which can write any text, and put it in a folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END, _PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, pad_token=_PADDING, clean_up_tokenization_spaces=False
    )
    whole.chat_template = CHAT_TEMPLATE
    whole.save_pretrained(folder)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder; one without a padding token pads with its end token.

    Raises:
        ConfigError: there is none.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{folder} holds no tokenizer that transformers can load: {reason}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"The tokenizer in {folder} has no end-of-text token.", hint="Set its eos_token.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's folder brings its tokenizer."""
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))


def require_same_vocabulary(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Make sure that a token means the same to both; the student may know more than the teacher, or fewer.

    Raises:
        ModelMismatch: names the first tokens that have different numbers.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    shared = ours.keys() & theirs.keys()
    by_number = {number: token for token, number in theirs.items()}
    differing = [token for token in ours if by_number.get(ours[token], token) != token]
    if not shared or differing:
        named = ", ".join(
            f"{token!r} is {ours[token]}, where the teacher has {by_number[ours[token]]!r}"
            for token in sorted(differing, key=ours.__getitem__)[:_MOST_NAMED]
        )
        raise ModelMismatch(
            f"The student's tokenizer has another vocabulary than the teacher's: {len(differing):,} tokens differ"
            f"{' (' + named + ')' if named else ''}.",
            hint="Distilling by distribution needs one vocabulary; take a student of the teacher's family.",
        )
