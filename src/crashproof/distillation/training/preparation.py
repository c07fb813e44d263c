"""Get data and models ready to train."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.disk.files import REAL_DISK
from crashproof.disk.lock import WriterLock
from crashproof.distillation.data.answered.prompts import PromptSource
from crashproof.distillation.data.captured_logits import CapturedLogits
from crashproof.distillation.data.source import Source
from crashproof.distillation.data.text_data import TaskData, TokenizedData, TrainingData
from crashproof.distillation.evaluation.evaluator import Evaluator
from crashproof.distillation.models.causal_lm import new_model, require_length, require_vocabulary
from crashproof.distillation.models.deferred.weights import DeferredWeights
from crashproof.distillation.models.lora import add_adapters
from crashproof.distillation.models.making import WHOLE_MODELS, ModelMaker
from crashproof.distillation.models.model_folder import DTYPES, ModelFolder
from crashproof.distillation.models.text_model import train_text_alone
from crashproof.distillation.recipes.recipe import Recipe
from crashproof.distillation.recipes.task import AnyTask
from crashproof.distillation.settings.models import StudentConfig
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.settings.teacher import TeacherConfig
from crashproof.distillation.text.shared_tokens import SharedTokens
from crashproof.distillation.text.token_bytes import token_bytes
from crashproof.distillation.text.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer
from crashproof.distillation.training.lessons import Lessons, LessonsSource
from crashproof.errors import ModelMismatch
from crashproof.pytorch.interrupts import Interrupts
from crashproof.pytorch.random_state import seed_everything

__all__ = ["Prepared", "new_student", "prepare", "tokenizer_for"]

log = logging.getLogger("crashproof")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Recipe and data, ready to train, on the CPU; weights may have no memory yet."""

    recipe: Recipe
    teacher: PreTrainedModel | None
    """None if the recipe needs no teacher, or the data hold its answers."""
    tokenizer: PreTrainedTokenizerFast
    data: TrainingData
    data_sha256: str
    held_out: Source | None
    held_out_data: TaskData | None
    """The tokens of `held_out`."""
    evaluator: Evaluator | None
    """None without held-out data."""
    saved_dtype: torch.dtype
    """Of the weights of the saved student."""
    weights: DeferredWeights | None = None
    """Where those come from that are on the meta device; None if all are in memory."""


def prepare(
    task: AnyTask,
    config: RunConfig,
    lessons: LessonsSource,
    *,
    cache: Path,
    interrupts: Interrupts,
    fills_cache: bool = True,
    models: ModelMaker = WHOLE_MODELS,
) -> Prepared:
    """Tokenize and build; what takes long is computed once and then read from `cache`.

    Only one of several processes fills the cache; the others call this after it, with `fills_cache=False`.

    Raises:
        RunInUse: another process is filling the cache.
        DataError, ConfigError, ModelMismatch, NewerFormat: the input is unusable; nothing was trained.
        StopRequested: a stop was requested while the teacher was being trained.
    """
    if not fills_cache:
        return _build(task, config, lessons, cache, interrupts, models)
    REAL_DISK.make_folders(cache)
    lock = WriterLock(cache / "writer.lock")
    try:
        return _build(task, config, lessons, cache, interrupts, models)
    finally:
        lock.release()


def tokenizer_for(config: RunConfig, source: Source | PromptSource, cache: Path) -> PreTrainedTokenizerFast:
    """Find the teacher's tokenizer, else the local student's, else train one; the caller holds the lock of `cache`.

    If teacher and student share most tokens only, and `teacher.shared_tokens_only` allows that, it is the student's.

    Raises:
        ConfigError: a folder holds none.
        DataError: the one that was stored with captured logits is damaged.
        ModelMismatch: both folders hold one, and an id has two meanings.
    """
    folders = _tokenizer_folders(config)
    found = [load_tokenizer(folder) for folder in folders]
    if _shared_tokens(config, folders, found) is not None:
        return found[-1]
    if found:
        return found[0]
    vocab_size = config.tokenizer.vocab_size
    folder = cache / f"tokenizer-{source.sha256[:16]}-{vocab_size}"
    return train_tokenizer(source.documents(), vocab_size=vocab_size, folder=folder)


def new_student(
    config: StudentConfig, tokenizer: PreTrainedTokenizerFast, max_length: int, models: ModelMaker = WHOLE_MODELS
) -> PreTrainedModel:
    """Make the student as training begins; new weights are drawn from the global generator.

    Raises:
        ConfigError: the folder holds no model, or a student of this shape cannot be made.
    """
    if config.path is not None:
        student = models.read(config.path)
    else:
        with models.drawing():
            student = new_model(config, tokenizer=tokenizer, max_length=max_length)
    if config.lora is not None:
        with models.drawing():
            student = add_adapters(student, config.lora)
    train_text_alone(student)
    return student


def _build(
    task: AnyTask,
    config: RunConfig,
    source: LessonsSource,
    cache: Path,
    interrupts: Interrupts,
    models: ModelMaker,
) -> Prepared:
    tokenizer = tokenizer_for(config, source.source, cache)
    lessons = source.prepare(tokenizer, cache, interrupts, models)
    recipe = models.complete(lambda: _make_recipe(task, config, lessons, tokenizer, models))
    evaluator: Evaluator | None = None
    if lessons.held_out is not None:
        evaluator = task.evaluator(lessons.held_out, lessons.held_out_data, config, tokenizer)
    return Prepared(
        recipe=recipe,
        teacher=lessons.teacher,
        tokenizer=tokenizer,
        data=lessons.data,
        data_sha256=lessons.data_sha256,
        held_out=lessons.held_out,
        held_out_data=lessons.held_out_data,
        evaluator=evaluator,
        saved_dtype=_saved_dtype(config.student),
        weights=models.weights,
    )


def _make_recipe(
    task: AnyTask, config: RunConfig, lessons: Lessons, tokenizer: PreTrainedTokenizerFast, models: ModelMaker
) -> Recipe:
    # The student's first weights depend on the seed alone, not on whether the teacher had to be trained.
    seed_everything(config.train.seed)
    student = new_student(config.student, tokenizer, config.data.max_length, models)
    require_length(student.config, "student", config.data.max_length)
    if lessons.teacher is not None:
        require_length(lessons.teacher.config, "teacher", config.data.max_length)
    with models.drawing():
        return _build_recipe(task, config, student, lessons, tokenizer)


def _saved_dtype(config: StudentConfig) -> torch.dtype:
    if config.save_dtype != "auto":
        return DTYPES[config.save_dtype]
    return torch.float32 if config.path is None else ModelFolder.read(config.path).dtype


def _tokenizer_folder(config: TeacherConfig) -> Path | None:
    if config.path is None or config.kind != "logits":
        return config.path
    return CapturedLogits.open(config.path).tokenizer_folder()


def _tokenizer_folders(config: RunConfig) -> list[Path]:
    return [path for path in (_tokenizer_folder(config.teacher), config.student.path) if path is not None]


def _shared_tokens(
    config: RunConfig, folders: list[Path], found: list[PreTrainedTokenizerFast]
) -> SharedTokens | None:
    """What two tokenizers share, if some ids differ and the config allows that.

    Ids alone are compared: tokenizers may split a text differently, as only one of them reads the data.

    Raises:
        ModelMismatch: Ids differ, and the config does not allow that, or too many do.
    """
    if len(found) < 2 or tokenizer_hash(found[0]) == tokenizer_hash(found[1]):
        return None
    shared = SharedTokens.of(*map(token_bytes, found))
    if not shared.differences:
        return None
    both = f"The tokenizers of teacher ({folders[0]}, there) and student ({folders[1]}, here) differ"
    if not shared.suffices:
        raise ModelMismatch(
            f"{both}: {shared}.",
            hint="Distribution losses compare token by token; use models that share a tokenizer.",
        )
    if not config.teacher.shared_tokens_only:
        raise ModelMismatch(
            f"{both}: {shared.differences[0]}.",
            hint="Distribution losses compare token by token; use models that share a tokenizer, or set "
            f"teacher.shared_tokens_only to true to leave out {len(shared.differences):,} of "
            f"{len(shared.shared) + len(shared.differences):,} token ids.",
        )
    return shared


def _build_recipe(
    task: AnyTask, config: RunConfig, student: PreTrainedModel, lessons: Lessons, tokenizer: PreTrainedTokenizerFast
) -> Recipe:
    """Build the recipe; of tokenizers that differ in a few ids, over those that they share.

    Raises:
        ModelMismatch: A model is too small for its tokenizer, or the data have tokens that the teacher cannot read.
    """
    folders = _tokenizer_folders(config)
    found = [load_tokenizer(folder) for folder in folders] if config.teacher.shared_tokens_only else []
    shared = _shared_tokens(config, folders, found)
    if shared is None:
        recipe: Recipe = task.build(student, lessons.teacher, config, len(tokenizer))
        return recipe
    require_vocabulary(student, "student", len(tokenizer))
    if lessons.teacher is not None:
        require_vocabulary(lessons.teacher, "teacher", len(found[0]))
        _require_readable(lessons.data, lessons.teacher, tokenizer)
    recipe = task.build(student, lessons.teacher, config, min(map(len, found)))
    recipe.restrict_teacher(shared)
    num_met, num_tokens = _count_tokens(lessons.data, shared.others_of_student)
    log.warning(
        "teacher.shared_tokens_only: %s. The divergence leaves these out; of %s tokens of the data, %s are such.",
        shared,
        f"{num_tokens:,}",
        f"{num_met:,}",
    )
    return recipe


def _require_readable(data: TrainingData, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse ids beyond the teacher's embedding."""
    embedding: Any = teacher.get_input_embeddings()
    size = int(embedding.weight.shape[0])
    ids = _ids_of(data)
    beyond = ids[ids >= size]
    if len(beyond):
        token = int(beyond[0])
        raise ModelMismatch(
            f"The data contain token {token} ({tokenizer.convert_ids_to_tokens(token)}) {len(beyond):,} time(s), and "
            f"the teacher's model has {size:,} tokens.",
            hint="Leave out the lines with it, or train without the teacher with loss.kd 0.",
        )


def _count_tokens(data: TrainingData, tokens: list[int]) -> tuple[int, int]:
    """How many tokens of the data are among these, and how many there are."""
    ids = _ids_of(data)
    return int(torch.isin(ids, torch.tensor(tokens, dtype=torch.long)).sum()), len(ids)


def _ids_of(data: TrainingData) -> torch.Tensor:
    """All tokens of the data; none of them are known where a paid teacher answers."""
    tokens = getattr(data, "tokens", None)
    return tokens.input_ids if isinstance(tokens, TokenizedData) else torch.empty(0, dtype=torch.long)
