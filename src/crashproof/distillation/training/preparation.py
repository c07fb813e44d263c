"""Get data and models ready to train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.disk.files import REAL_DISK
from crashproof.disk.lock import WriterLock
from crashproof.distillation.data.api_data import ApiData, PromptSource, load_prompts
from crashproof.distillation.data.captured_logits import CapturedLogits
from crashproof.distillation.data.text_data import Source, TrainingData
from crashproof.distillation.evaluation.evaluator import Evaluator
from crashproof.distillation.models.causal_lm import load_model, new_model
from crashproof.distillation.models.lora import with_adapters
from crashproof.distillation.recipes.recipe import Recipe, Task
from crashproof.distillation.settings.loss import DivergenceConfig
from crashproof.distillation.settings.models import StudentConfig
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.settings.teacher import TeacherConfig
from crashproof.distillation.teachers.local import load_teacher, teacher_folder
from crashproof.distillation.text.token_bytes import first_difference, token_bytes
from crashproof.distillation.text.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer
from crashproof.errors import ConfigError, ModelMismatch
from crashproof.pytorch.interrupts import Interrupts
from crashproof.pytorch.random_state import seed_everything

__all__ = ["Prepared", "learned_and_held_out", "new_student", "prepare", "tokenizer_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All that a training loop needs, on the CPU."""

    recipe: Recipe
    teacher: PreTrainedModel | None
    """None where nobody is asked, or the data bring its answers along."""
    tokenizer: PreTrainedTokenizerFast
    data: TrainingData
    data_sha256: str
    evaluator: Evaluator | None
    """None without held-out data."""


def prepare(
    task: Task, config: RunConfig, *, cache: Path, interrupts: Interrupts, fills_cache: bool = True
) -> Prepared:
    """Read, tokenize and build; what takes long is computed once and read from `cache` ever after.

    Of many processes one fills the cache; the others come after it, and only read (`fills_cache`).

    Raises:
        RunInUse: another process is filling the cache.
        DataError, ConfigError, ModelMismatch, NewerFormat: in words, before anything is trained.
        StopRequested: somebody asked to stop while the teacher was being trained.
    """
    source = _source(task, config)
    if not fills_cache:
        return _prepared(task, config, source, cache, interrupts)
    REAL_DISK.make_folders(cache)
    lock = WriterLock(cache / "writer.lock")
    try:
        return _prepared(task, config, source, cache, interrupts)
    finally:
        lock.release()


def tokenizer_for(config: RunConfig, source: Source | PromptSource, cache: Path) -> PreTrainedTokenizerFast:
    """The teacher's, else the local student's, else one trained on the data; the caller holds the lock of `cache`.

    Raises:
        ConfigError: a folder holds none.
        DataError: the one that was kept beside captured logits is damaged.
        ModelMismatch: both folders bring one, and an id means different things to them.
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
    """The student as training begins; what is new in it is drawn from the global generator.

    Raises:
        ConfigError: there is no such model, or no such student can be made.
    """
    if config.path is not None:
        student = load_model(config.path)
    else:
        student = new_model(config, tokenizer=tokenizer, max_length=max_length)
    return student if config.lora is None else with_adapters(student, config.lora)


def learned_and_held_out(
    task: Task, config: RunConfig, source: Source | PromptSource
) -> tuple[Source | PromptSource, Source | None]:
    """What is learned from, and what is held out to evaluate on.

    Raises:
        ConfigError: the share that is to be held out leaves nothing of one of them.
    """
    if config.data.eval_path is not None:
        return source, task.load(config.data.model_copy(update={"path": config.data.eval_path}))
    if config.data.held_out == 0:
        return source, None
    if isinstance(source, PromptSource):
        raise ConfigError(
            "data.held_out cannot be taken from prompts that a paid teacher answers.", hint="Set data.eval_path."
        )
    learned, held_out = source.split(config.data.held_out)
    if not held_out.samples or not learned.samples:
        raise ConfigError(
            f"data.held_out is {config.data.held_out}, and of {len(source.samples):,} samples that leaves "
            f"{len(learned.samples):,} to learn from and {len(held_out.samples):,} to evaluate on.",
            hint="Choose a share that leaves some of both.",
        )
    return learned, held_out


def _source(task: Task, config: RunConfig) -> Source | PromptSource:
    if config.teacher.kind != "api":
        return task.load(config.data)
    assert config.data.path is not None, "the config refuses a paid teacher without prompts"
    return load_prompts(config.data.path)


def _prepared(
    task: Task, config: RunConfig, source: Source | PromptSource, cache: Path, interrupts: Interrupts
) -> Prepared:
    tokenizer = tokenizer_for(config, source, cache)
    learned, held_out = learned_and_held_out(task, config, source)
    teacher, data = _taught(task, config, learned, tokenizer, cache, interrupts)
    # The student's first weights depend on the seed alone, not on whether the teacher had to be trained.
    seed_everything(config.train.seed)
    student = new_student(config.student, tokenizer, config.data.max_length)
    recipe = task.build(student, teacher, config, tokenizer)
    evaluator = None
    if held_out is not None and task.evaluator is not None:
        evaluator = task.evaluator(held_out, task.tokenize(held_out, config, tokenizer, cache), config, tokenizer)
    return Prepared(
        recipe=recipe,
        teacher=teacher,
        tokenizer=tokenizer,
        data=data,
        data_sha256=learned.sha256,
        evaluator=evaluator,
    )


def _taught(
    task: Task,
    config: RunConfig,
    source: Source | PromptSource,
    tokenizer: PreTrainedTokenizerFast,
    cache: Path,
    interrupts: Interrupts,
) -> tuple[PreTrainedModel | None, TrainingData]:
    """A teacher to ask at each step, or none and data that bring its answers along."""
    if isinstance(source, PromptSource):
        ahead = config.teacher.ahead_steps * config.train.batch_size * config.train.gradient_accumulation
        return None, ApiData(
            source,
            tokenizer,
            max_length=config.data.max_length,
            top_k=config.teacher.logprobs,
            ahead_samples=ahead,
            interrupts=interrupts,
        )
    data = task.tokenize(source, config, tokenizer, cache)
    if not task.asks_teacher(config):
        return None, data
    if config.teacher.kind == "logits":
        assert config.teacher.path is not None
        captured = CapturedLogits.open(config.teacher.path)
        assert isinstance(config.loss, DivergenceConfig), "only recipes that ask a teacher can learn from its logits"
        captured.require_fit(data.tokens, tokenizer, temperature=config.loss.temperature)
        return None, captured.beside(data.tokens)
    folder = teacher_folder(
        config.teacher, data.tokens, tokenizer, max_length=config.data.max_length, cache=cache, interrupts=interrupts
    )
    return load_teacher(folder), data


def _tokenizer_folder(config: TeacherConfig) -> Path | None:
    if config.path is None or config.kind != "logits":
        return config.path
    return CapturedLogits.open(config.path).tokenizer_folder()


def _require_same_tokens(folders: list[Path], found: list[PreTrainedTokenizerFast]) -> None:
    """Tokenizers may differ in how they split a text: the teacher's alone reads the data."""
    difference = first_difference(*map(token_bytes, found))
    if difference is not None:
        raise ModelMismatch(
            f"The tokenizers of teacher ({folders[0]}, there) and student ({folders[1]}, here) differ: {difference}.",
            hint="Distribution losses compare token by token; use models that share a tokenizer.",
        )
