"""What a student says to prompts."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.evaluation.evaluator import EvaluatedStudent
from crashproof.distillation.text.chat import end_of_turn
from crashproof.pytorch.device import ComputeDevice

__all__ = ["generated_texts"]

_SHORTEST_MARK = 3
"""Characters: a shorter one may stand in an answer."""


def generated_texts(
    student: EvaluatedStudent,
    prompts: list[str],
    tokenizer: PreTrainedTokenizerFast,
    device: ComputeDevice,
    *,
    max_new_tokens: int,
    in_lockstep: bool,
) -> list[str]:
    """Greedy answers, each up to its end mark, without special tokens.

    Args:
        student: Its student answers.
        prompts: As the student reads them, up to where its answer begins.
        tokenizer: The student's.
        device: Where the student lies.
        max_new_tokens: Of one answer at most.
        in_lockstep: Other processes generate as well, and none may stop before the others.
    """
    encoded = [tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"] for prompt in prompts]
    length = max(map(len, encoded))
    pad_id = int(tokenizer.pad_token_id or 0)
    mark = end_of_turn(tokenizer)
    ends = _ends(student, tokenizer, mark)
    # On the left, so that what is generated begins at one place.
    ids = torch.tensor([[pad_id] * (length - len(each)) + each for each in encoded], dtype=torch.long)
    mask = torch.tensor([[0] * (length - len(each)) + [1] * len(each) for each in encoded], dtype=torch.long)
    said = student.generate(
        ids.to(device.device),
        mask.to(device.device),
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=pad_id,
        synced_gpus=in_lockstep,
        use_cache=True,
    )
    return [_decoded(row, set(ends), mark, tokenizer) for row in said[:, length:].tolist()]


def _decoded(ids: list[int], ends: set[int], mark: str, tokenizer: PreTrainedTokenizerFast) -> str:
    length = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    text = str(tokenizer.decode(ids[:length], skip_special_tokens=True))
    # Where a mark is several tokens, the student goes on behind it.
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
