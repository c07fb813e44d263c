"""What a run learns from, by kind of teacher."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.data.answered.prompts import PromptSource, load_prompts
from crashproof.distillation.data.answered.room import most_answered
from crashproof.distillation.data.api_data import ApiData
from crashproof.distillation.data.captured_logits import CapturedLogits
from crashproof.distillation.data.source import Source, rules_of
from crashproof.distillation.data.text_data import TaskData, TrainingData
from crashproof.distillation.models.making import ModelMaker
from crashproof.distillation.recipes.task import AnyTask
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.teachers.answer_file import read_answered_file
from crashproof.distillation.teachers.api import open_teacher
from crashproof.distillation.teachers.local import load_teacher, prepare_teacher
from crashproof.errors import ConfigError
from crashproof.pytorch.interrupts import Interrupts

__all__ = ["Lessons", "LessonsSource", "read_lessons", "split_source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """Training data with a teacher's part in it, and what is held out of it."""

    data: TrainingData
    data_sha256: str
    teacher: PreTrainedModel | None
    """None if the recipe needs no teacher, or the data hold its answers."""
    held_out: Source | None
    held_out_data: TaskData | None
    """The tokens of `held_out`."""


class LessonsSource(Protocol):
    """What was read and checked, before any tokenizer."""

    @property
    def source(self) -> Source | PromptSource:
        """All of it, to train a tokenizer on."""
        ...

    def prepare(
        self, tokenizer: PreTrainedTokenizerFast, cache: Path, interrupts: Interrupts, models: ModelMaker
    ) -> Lessons:
        """Tokenize it, and get the teacher ready; what takes long is computed once and then read from `cache`."""
        ...


def read_lessons(task: AnyTask, config: RunConfig) -> LessonsSource:
    """Read and check the files; nothing is written.

    Raises:
        DataError: a file is missing or empty, or a line is malformed.
    """
    return (_Prompts if config.teacher.kind == "api" else _Samples)(task, config)


def split_source(task: AnyTask, config: RunConfig, source: Source) -> tuple[Source, Source | None]:
    """The samples to learn from, and those to evaluate on.

    Raises:
        ConfigError: `data.held_out` leaves none of one of them.
    """
    held_out = _evaluation_source(task, config)
    if held_out is not None or config.data.held_out == 0:
        return source, held_out
    learned, held_out = source.split(config.data.held_out)
    if not held_out.samples or not learned.samples:
        raise ConfigError(
            f"data.held_out is {config.data.held_out}, and of {len(source.samples):,} samples that leaves "
            f"{len(learned.samples):,} to learn from and {len(held_out.samples):,} to evaluate on.",
            hint="Choose a share that leaves some of both.",
        )
    return learned, held_out


class _Samples:
    """Samples, with a teacher that is a model, captured logits, log-probabilities in the lines, or no teacher."""

    def __init__(self, task: AnyTask, config: RunConfig) -> None:
        self._task = task
        self._config = config
        self.source: Source = task.load(config)

    def prepare(
        self, tokenizer: PreTrainedTokenizerFast, cache: Path, interrupts: Interrupts, models: ModelMaker
    ) -> Lessons:
        """See `LessonsSource.prepare`."""
        learned, held_out = split_source(self._task, self._config, self.source)
        if self._config.teacher.kind == "logprobs" and self._config.divergence is not None:
            data_config = self._config.data
            answered = read_answered_file(
                learned, tokenizer, max_length=data_config.max_length, on_too_long=data_config.on_too_long
            )
            return Lessons(
                data=answered,
                data_sha256=learned.sha256,
                teacher=None,
                held_out=held_out,
                held_out_data=_tokenize_held_out(self._task, self._config, held_out, tokenizer, cache),
            )
        tokenized: TaskData = self._task.tokenize(learned, self._config, tokenizer, cache)
        # Both before the teacher, which may have to be trained: a line that is too long is found first.
        held_out_data = _tokenize_held_out(self._task, self._config, held_out, tokenizer, cache)
        teacher, data = self._add_teacher(tokenized, tokenizer, cache, interrupts, models)
        return Lessons(
            data=data,
            data_sha256=learned.sha256,
            teacher=teacher,
            held_out=held_out,
            held_out_data=held_out_data,
        )

    def _add_teacher(
        self,
        data: TaskData,
        tokenizer: PreTrainedTokenizerFast,
        cache: Path,
        interrupts: Interrupts,
        models: ModelMaker,
    ) -> tuple[PreTrainedModel | None, TrainingData]:
        teacher, divergence = self._config.teacher, self._config.divergence
        if divergence is None:
            return None, data
        if teacher.kind == "logits":
            assert teacher.path is not None
            captured = CapturedLogits.open(teacher.path)
            captured.require_fit(data.tokens, tokenizer, temperature=divergence.temperature)
            return None, captured.beside(data.tokens)
        max_length = self._config.data.max_length
        folder = prepare_teacher(
            teacher, data.tokens, tokenizer, max_length=max_length, cache=cache, interrupts=interrupts
        )
        return load_teacher(folder, models), data


class _Prompts:
    """Prompts that a paid teacher answers while the loop runs."""

    def __init__(self, task: AnyTask, config: RunConfig) -> None:
        assert config.data.path is not None, "the config refuses a paid teacher without prompts"
        self._task = task
        self._config = config
        if isinstance(config.data.path, list):
            raise ConfigError(
                "A paid teacher answers the prompts of one file or folder, and data.path names several.",
                hint="Put the files into a folder.",
            )
        self.source = load_prompts(config.data.path, rules_of(config.data), split=config.data.split)

    def prepare(
        self, tokenizer: PreTrainedTokenizerFast, cache: Path, interrupts: Interrupts, models: ModelMaker
    ) -> Lessons:
        """See `LessonsSource.prepare`."""
        config, train = self._config.teacher, self._config.train
        held_out = _evaluation_source(self._task, self._config)
        if held_out is None and self._config.data.held_out > 0:
            raise ConfigError(
                "data.held_out cannot be taken from prompts that a paid teacher answers.", hint="Set data.eval_path."
            )
        data = ApiData(
            self.source,
            tokenizer,
            max_length=self._config.data.max_length,
            on_too_long=self._config.data.on_too_long,
            max_tokens=most_answered(config.request_parameters()),
            top_k=config.logprobs,
            ahead_samples=config.ahead_steps * train.batch_size * train.gradient_accumulation,
            open_teacher=partial(open_teacher, config),
            interrupts=interrupts,
            rules=rules_of(self._config.data),
        )
        return Lessons(
            data=data,
            data_sha256=self.source.sha256,
            teacher=None,
            held_out=held_out,
            held_out_data=_tokenize_held_out(self._task, self._config, held_out, tokenizer, cache),
        )


def _tokenize_held_out(
    task: AnyTask, config: RunConfig, held_out: Source | None, tokenizer: PreTrainedTokenizerFast, cache: Path
) -> TaskData | None:
    if held_out is None:
        return None
    data: TaskData = task.tokenize(held_out, config, tokenizer, cache)
    return data


def _evaluation_source(task: AnyTask, config: RunConfig) -> Source | None:
    if config.data.eval_path is None and config.data.eval_split is None:
        return None
    path = config.data.eval_path or config.data.path
    data = config.data.model_copy(update={"path": path, "split": config.data.eval_split})
    source: Source = task.load(config.model_copy(update={"data": data}))
    return source
