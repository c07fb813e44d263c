"""Get data and models ready to train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.disk.files import REAL_DISK
from crashproof.disk.lock import WriterLock
from crashproof.distillation.data.api_data import PromptSource
from crashproof.distillation.data.captured_logits import CapturedLogits
from crashproof.distillation.data.source import Source
from crashproof.distillation.data.text_data import TrainingData
from crashproof.distillation.evaluation.evaluator import Evaluator
from crashproof.distillation.models.causal_lm import load_model, new_model, require_length
from crashproof.distillation.models.lora import add_adapters
from crashproof.distillation.models.model_folder import DTYPES, ModelFolder
from crashproof.distillation.models.text_model import train_text_alone
from crashproof.distillation.recipes.recipe import Recipe
from crashproof.distillation.recipes.task import AnyTask
from crashproof.distillation.settings.models import StudentConfig
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.settings.teacher import TeacherConfig
from crashproof.distillation.text.token_bytes import first_difference, token_bytes
from crashproof.distillation.text.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer
from crashproof.distillation.training.lessons import LessonsSource, read_lessons
from crashproof.errors import ModelMismatch
from crashproof.pytorch.interrupts import Interrupts
from crashproof.pytorch.random_state import seed_everything

__all__ = ["Prepared", "new_student", "prepare", "tokenizer_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Recipe and data, ready to train, on the CPU."""

    recipe: Recipe
    teacher: PreTrainedModel | None
    """None if the recipe needs no teacher, or the data hold its answers."""
    tokenizer: PreTrainedTokenizerFast
    data: TrainingData
    data_sha256: str
    evaluator: Evaluator | None
    """None without held-out data."""
    saved_dtype: torch.dtype
    """Of the weights of the saved student."""


def prepare(
    task: AnyTask, config: RunConfig, *, cache: Path, interrupts: Interrupts, fills_cache: bool = True
) -> Prepared:
    """Read, tokenize and build; what takes long is computed once and then read from `cache`.

    Only one of several processes fills the cache; the others call this after it, with `fills_cache=False`.

    Raises:
        RunInUse: another process is filling the cache.
        DataError, ConfigError, ModelMismatch, NewerFormat: the input is unusable; nothing was trained.
        StopRequested: a stop was requested while the teacher was being trained.
    """
    lessons = read_lessons(task, config)
    if not fills_cache:
        return _build(task, config, lessons, cache, interrupts)
    REAL_DISK.make_folders(cache)
    lock = WriterLock(cache / "writer.lock")
    try:
        return _build(task, config, lessons, cache, interrupts)
    finally:
        lock.release()


def tokenizer_for(config: RunConfig, source: Source | PromptSource, cache: Path) -> PreTrainedTokenizerFast:
    """Find the teacher's tokenizer, else the local student's, else train one; the caller holds the lock of `cache`.

    Raises:
        ConfigError: a folder holds none.
        DataError: the one that was stored with captured logits is damaged.
        ModelMismatch: both folders hold one, and an id has two meanings.
    """
    folders = [path for path in (_tokenizer_folder(config.teacher), config.student.path) if path is not None]
    found = [load_tokenizer(folder) for folder in folders]
    if len(found) == 2 and tokenizer_hash(found[0]) != tokenizer_hash(found[1]):
        _require_same_tokens(folders, found)
    if found:
        return found[0]
    vocab_size = config.tokenizer.vocab_size
    folder = cache / f"tokenizer-{source.sha256[:16]}-{vocab_size}"
    return train_tokenizer(source.documents(), vocab_size=vocab_size, folder=folder)


def new_student(config: StudentConfig, tokenizer: PreTrainedTokenizerFast, max_length: int) -> PreTrainedModel:
    """Make the student as training begins; new weights are drawn from the global generator.

    Raises:
        ConfigError: the folder holds no model, or a student of this shape cannot be made.
    """
    if config.path is not None:
        student = load_model(config.path)
    else:
        student = new_model(config, tokenizer=tokenizer, max_length=max_length)
    student = student if config.lora is None else add_adapters(student, config.lora)
    train_text_alone(student)
    return student


def _build(task: AnyTask, config: RunConfig, source: LessonsSource, cache: Path, interrupts: Interrupts) -> Prepared:
    tokenizer = tokenizer_for(config, source.source, cache)
    lessons = source.prepare(tokenizer, cache, interrupts)
    # The student's first weights depend on the seed alone, not on whether the teacher had to be trained.
    seed_everything(config.train.seed)
    student = new_student(config.student, tokenizer, config.data.max_length)
    require_length(student.config, "student", config.data.max_length)
    if lessons.teacher is not None:
        require_length(lessons.teacher.config, "teacher", config.data.max_length)
    recipe: Recipe = task.build(student, lessons.teacher, config, len(tokenizer))
    evaluator: Evaluator | None = None
    if lessons.held_out is not None:
        evaluator = task.evaluator(lessons.held_out, lessons.held_out_data, config, tokenizer)
    return Prepared(
        recipe=recipe,
        teacher=lessons.teacher,
        tokenizer=tokenizer,
        data=lessons.data,
        data_sha256=lessons.data_sha256,
        evaluator=evaluator,
        saved_dtype=_saved_dtype(config.student),
    )


def _saved_dtype(config: StudentConfig) -> torch.dtype:
    if config.save_dtype != "auto":
        return DTYPES[config.save_dtype]
    return torch.float32 if config.path is None else ModelFolder.read(config.path).dtype


def _tokenizer_folder(config: TeacherConfig) -> Path | None:
    if config.path is None or config.kind != "logits":
        return config.path
    return CapturedLogits.open(config.path).tokenizer_folder()


def _require_same_tokens(folders: list[Path], found: list[PreTrainedTokenizerFast]) -> None:
    """Compare ids alone: tokenizers may split a text differently, as only the teacher's reads the data."""
    difference = first_difference(*map(token_bytes, found))
    if difference is not None:
        raise ModelMismatch(
            f"The tokenizers of teacher ({folders[0]}, there) and student ({folders[1]}, here) differ: {difference}.",
            hint="Distribution losses compare token by token; use models that share a tokenizer.",
        )
