"""What a student learns of the lines of a file, recipe by recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.answer_data import answer_data, read_answers
from crashproof.distillation.data.text_data import TokenizedData, load_source, tokenized
from crashproof.distillation.data.tool_conversations import read_source
from crashproof.distillation.data.tool_data import tool_data
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.settings.recipes.answer_generation import AnswerDataConfig
from crashproof.distillation.settings.recipes.tools import ToolDataConfig


def tokens_of(
    recipe: str, path: Path | list[Path], tokenizer: PreTrainedTokenizerFast, **settings: Any
) -> TokenizedData:
    """A file's tokens as a recipe makes them."""
    first = path[0] if isinstance(path, list) else path
    cache = first.parent / f"cache-of-{recipe}"
    settings = {"path": path, "max_length": 2048} | settings
    if recipe == "kd":
        config = DataConfig(**settings)
        return tokenized(load_source(config), config, tokenizer, cache)
    if recipe == "answer_generation":
        answers = AnswerDataConfig(**settings)
        source = read_answers(path, answers)
        return answer_data(source, answers, tokenizer, cache, has_rejected=False).tokens
    tools = ToolDataConfig(**settings)
    is_selecting = recipe == "tool_select"
    lines = read_source(path, tools, has_one_call=is_selecting)
    return tool_data(lines, tools, tokenizer, cache, ends_with_call=is_selecting, has_masks=False).tokens


def texts_of(data: TokenizedData, tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, str]]:
    """Of each sample: what the student reads, and what of it it learns."""
    texts = []
    for sample in range(len(data)):
        batch = data.batch([sample])
        ids, labels = batch.input_ids[0], batch.labels[0]
        texts.append((str(tokenizer.decode(ids)), str(tokenizer.decode(labels[labels != IGNORED]))))
    return texts


def learned(recipe: str, path: Path | list[Path], tokenizer: PreTrainedTokenizerFast, **settings: Any) -> list[str]:
    """What is learned of each sample of a file."""
    texts = texts_of(tokens_of(recipe, path, tokenizer, **settings), tokenizer)
    return [text.removesuffix("\n").removesuffix("<|end|>") for _, text in texts]


def write_lines(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path
