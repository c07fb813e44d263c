"""Generate a student's answers to prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.evaluation.evaluator import EvaluatedStudent, Place
from crashproof.distillation.models.text_model import most_positions
from crashproof.distillation.text.chat import end_of_turn
from crashproof.pytorch.device import ComputeDevice

__all__ = ["generate_share", "generate_texts", "longest_length"]

_SHORTEST_MARK = 3
"""Characters; a shorter mark may be part of an answer."""


def generate_share(
    student: EvaluatedStudent,
    prompts: list[list[int]],
    tokenizer: PreTrainedTokenizerFast,
    device: ComputeDevice,
    place: Place,
    *,
    max_new_tokens: int,
) -> Iterator[tuple[int, str]]:
    """The indices of this process's prompts, each with the student's answer; see `generate_texts`."""
    for indices, counts in place.batches(len(prompts)):
        texts = generate_texts(
            student,
            [prompts[index] for index in indices],
            tokenizer,
            device,
            max_new_tokens=max_new_tokens,
            in_lockstep=place.in_lockstep,
        )
        yield from (
            (index, text) for index, text, is_counted in zip(indices, texts, counts, strict=True) if is_counted
        )


def longest_length(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens of the longest of these texts; 0 without any."""
    return max((len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts), default=0)


def generate_texts(
    student: EvaluatedStudent,
    prompts: list[list[int]],
    tokenizer: PreTrainedTokenizerFast,
    device: ComputeDevice,
    *,
    max_new_tokens: int,
    in_lockstep: bool,
) -> list[str]:
    """Greedy answers, each up to its end mark, without special tokens.

    Args:
        student: Generates the answers.
        prompts: The tokens that the student reads, up to where its answer begins.
        tokenizer: The student's.
        device: Where the student is.
        max_new_tokens: Maximum tokens per answer.
        in_lockstep: Other processes generate as well, and none may stop before the others.
    """
    length = max(map(len, prompts))
    # Behind its last position a model with learned positions has none to read.
    room = (most_positions(student.student.config) or math.inf) - length
    pad_id = int(tokenizer.pad_token_id or 0)
    mark = end_of_turn(tokenizer)
    ends = _ends(student, tokenizer, mark)
    # Padded on the left, so that all answers begin at the same position.
    ids = torch.tensor([[pad_id] * (length - len(each)) + each for each in prompts], dtype=torch.long)
    mask = torch.tensor([[0] * (length - len(each)) + [1] * len(each) for each in prompts], dtype=torch.long)
    generated = student.generate(
        ids.to(device.device),
        mask.to(device.device),
        max_new_tokens=int(min(max_new_tokens, room)),
        eos_token_id=ends,
        pad_token_id=pad_id,
        synced_gpus=in_lockstep,
        use_cache=True,
    )
    return [_decoded(row, set(ends), mark, tokenizer) for row in generated[:, length:].tolist()]


def _decoded(ids: list[int], ends: set[int], mark: str, tokenizer: PreTrainedTokenizerFast) -> str:
    length = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    text = str(tokenizer.decode(ids[:length], skip_special_tokens=True))
    # A mark of several tokens does not stop the generation: cut off what follows it.
    return text.partition(mark)[0] if len(mark) >= _SHORTEST_MARK else text


def _ends(student: EvaluatedStudent, tokenizer: PreTrainedTokenizerFast, mark: str) -> list[int]:
    """The tokenizer's end mark, those that the model itself names, and the chat template's where it is one token."""
    config = getattr(student.student, "generation_config", None)
    of_model = getattr(config, "eos_token_id", None)
    named = of_model if isinstance(of_model, list) else [of_model]
    of_template = tokenizer(mark, add_special_tokens=False)["input_ids"] if len(mark) >= _SHORTEST_MARK else []
    if len(of_template) == 1:
        named = [*named, *of_template]
    return list(dict.fromkeys(int(each) for each in [tokenizer.eos_token_id, *named] if each is not None))
