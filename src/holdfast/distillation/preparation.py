"""Get data and models ready to train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from holdfast.disk.files import REAL_DISK
from holdfast.disk.lock import WriterLock
from holdfast.distillation.config import RunConfig
from holdfast.distillation.data import Source, TokenizedData, load_source, tokenized
from holdfast.distillation.models import StudentConfig, load_model, new_model
from holdfast.distillation.recipe_kd import KdRecipe
from holdfast.distillation.teacher import teacher_model
from holdfast.distillation.tokenizer import load_tokenizer, tokenizer_hash, trained_tokenizer
from holdfast.errors import ModelMismatch
from holdfast.pytorch.interrupts import Interrupts
from holdfast.pytorch.random_state import seed_everything

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All that a training loop needs, on the CPU."""

    recipe: KdRecipe
    student: PreTrainedModel
    teacher: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    data: TokenizedData
    data_sha256: str


def prepare(config: RunConfig, *, cache: Path, interrupts: Interrupts) -> Prepared:
    """Read, tokenize and build; what takes long is computed once and read from `cache` ever after.

    Raises:
        RunInUse: another process is filling the cache.
        DataError, ConfigError, ModelMismatch: in words, before anything is trained.
        StopRequested: somebody asked to stop while the teacher was being trained.
    """
    source = load_source(config.data)
    REAL_DISK.make_folders(cache)
    lock = WriterLock(cache / "writer.lock")
    try:
        return _prepared(config, source, cache, interrupts)
    finally:
        lock.release()


def _prepared(config: RunConfig, source: Source, cache: Path, interrupts: Interrupts) -> Prepared:
    tokenizer = _tokenizer(config, source, cache)
    data = tokenized(source, config.data, tokenizer, cache)
    teacher = teacher_model(
        config.teacher, data, tokenizer, max_length=config.data.max_length, cache=cache, interrupts=interrupts
    )
    # The student's first weights depend on the seed alone, not on whether the teacher had to be trained.
    seed_everything(config.train.seed)
    student = _student(config.student, tokenizer, config.data.max_length)
    return Prepared(
        recipe=KdRecipe(student, teacher, config.loss, vocab_size=len(tokenizer)),
        student=student,
        teacher=teacher,
        tokenizer=tokenizer,
        data=data,
        data_sha256=source.sha256,
    )


def _tokenizer(config: RunConfig, source: Source, cache: Path) -> PreTrainedTokenizerFast:
    """The local teacher's, else the local student's, else one trained on the data.

    Raises:
        ModelMismatch: both folders bring one, and they differ.
    """
    folders = [path for path in (config.teacher.path, config.student.path) if path is not None]
    found = [load_tokenizer(folder) for folder in folders]
    if len(found) == 2 and tokenizer_hash(found[0]) != tokenizer_hash(found[1]):
        raise ModelMismatch(
            f"The tokenizers of teacher ({folders[0]}) and student ({folders[1]}) differ: {_difference(*found)}.",
            hint="Distribution losses compare token by token; use models that share a tokenizer.",
        )
    if found:
        return found[0]
    documents = [_text(sample) for sample in source.samples]
    vocab_size = config.tokenizer.vocab_size
    folder = cache / f"tokenizer-{source.sha256[:16]}-{vocab_size}"
    return trained_tokenizer(documents, vocab_size=vocab_size, folder=folder)


def _text(sample: dict[str, object]) -> str:
    """Everything in a sample that is text, for training a tokenizer."""
    if isinstance(sample.get("text"), str):
        return str(sample["text"])
    if isinstance(sample.get("messages"), list):
        return "\n".join(str(message["content"]) for message in sample["messages"])  # type: ignore[attr-defined]
    return f"{sample['prompt']}{sample['teacher_text']}"


def _student(config: StudentConfig, tokenizer: PreTrainedTokenizerFast, max_length: int) -> PreTrainedModel:
    if config.path is not None:
        return load_model(config.path)
    return new_model(config, tokenizer=tokenizer, max_length=max_length)


def _difference(one: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> str:
    """The first token id that means different things."""
    for token in range(max(len(one), len(other))):
        meanings = one.convert_ids_to_tokens(token), other.convert_ids_to_tokens(token)
        if meanings[0] != meanings[1]:
            return f"token {token} is {meanings[0]!r} there and {meanings[1]!r} here"
    return "they split text differently"
