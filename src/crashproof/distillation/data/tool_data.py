"""Training data of tool calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.answered.cut_answers import log_cut_off
from crashproof.distillation.data.lengths import LengthCensus
from crashproof.distillation.data.text_data import (
    Batch,
    TaskData,
    TokenizedData,
    num_before_learned,
    tokens_end_to_end,
)
from crashproof.distillation.data.token_cache import cached_state
from crashproof.distillation.data.tool_conversations import ToolSource
from crashproof.distillation.data.tool_spans import render_conversation
from crashproof.distillation.data.tool_tokens import ARGUMENTS, INTEGRATION, JSON, SELECTION, ToolTokens, tool_tokens
from crashproof.distillation.settings.recipes.tools import ToolDataConfig
from crashproof.distillation.text.chat import BUILTIN_TEMPLATE
from crashproof.distillation.text.json_grammar import JsonGrammars
from crashproof.distillation.text.tokenizer import tokenizer_hash
from crashproof.pytorch.tensor_digest import sha256_of

__all__ = ["ToolBatch", "ToolData", "tool_data"]

_FORMAT = 3
_COUNTED = {"selection": SELECTION, "arguments": ARGUMENTS, "json": JSON, "integration": INTEGRATION}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolBatch(Batch):
    """Samples side by side with the parts of their tokens; each position describes the token that it predicts."""

    parts: Tensor
    """(batch, length) of uint8: the sum of `SELECTION`, `ARGUMENTS`, `JSON` and `INTEGRATION`."""
    choices: Tensor
    """(batch, length, most) of int64: tokens that still spell an offered tool; outside of names the target alone;
    padded with -1."""
    json_rows: Tensor
    """(rows,): those of `rows` that predict a token of arguments, if there are masks."""
    other_rows: Tensor
    """(rows,): those of `rows` in any other part."""
    free_rows: Tensor
    """(rows,): the rest of `rows`."""
    masks: Tensor
    """(json rows, words) of int32: tokens that the schema allows; see `json_validity_rows`."""
    mask_of: Tensor
    """(batch, length) of int64: the row of `masks` for each position."""

    def share(self, part: int, rows: Tensor) -> Tensor:
        """1.0 for each of these rows in a part, else 0.0; (rows,)."""
        return ((self.parts.flatten()[rows] & part) != 0).to(torch.float32)


class ToolData(TaskData):
    """All samples of a source."""

    def __init__(self, tokens: TokenizedData, state: Mapping[str, Any], *, grammars: JsonGrammars | None) -> None:
        """Arrange a `state` of `tool_data`; without `grammars` batches have no masks."""
        self.whole: list[int] = state["whole"]
        """The places in the source of the lines that are neither cut nor left out."""
        self._tokens = tokens
        self._parts: Tensor = state["parts"]
        self._choices_at: Tensor = state["choices_at"]
        self._choices: Tensor = state["choices"]
        self._spans: list[tuple[int, int, int]] = [tuple(each) for each in state["spans"].tolist()]
        self._spans_from: list[int] = state["spans_from"].tolist()
        self._rules: list[str] = state["rules"]
        self._grammars = grammars
        self._counts = self._count_tokens()

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> TokenizedData:
        """All samples as plain tokens."""
        return self._tokens

    def counts(self, indices: list[int]) -> dict[str, int]:
        """The predicted tokens of these samples, in all and by part."""
        sums = self._counts[indices].sum(dim=0).tolist()
        return dict(zip(("tokens", *_COUNTED), sums, strict=True))

    def batch(self, indices: list[int]) -> ToolBatch:
        """The samples at these indices."""
        plain = self._tokens.batch(indices)
        shape = plain.input_ids.shape
        parts = torch.zeros(shape, dtype=torch.uint8)
        choices = torch.full((*shape, self._choices.shape[1]), -1)
        # Where there is nothing to choose, only the target is allowed. Rows that do not count may have any target.
        choices[:, :, 0] = plain.targets.clamp(min=0)
        masks: list[Tensor] = []
        mask_of = torch.zeros(shape, dtype=torch.long)
        num_masks = 0
        for row, index in enumerate(indices):
            start, end = self._tokens.starts[index : index + 2].tolist()
            parts[row, : end - start - 1] = self._parts[start + 1 : end]
            found = torch.searchsorted(self._choices_at, torch.tensor([start + 1, end])).tolist()
            choices[row, self._choices_at[slice(*found)] - start - 1] = self._choices[slice(*found)]
            for first, stop, mask in self._masks(index):
                mask_of[row, first - start - 1 : stop - start - 1] = torch.arange(num_masks, num_masks + len(mask))
                num_masks += len(mask)
                masks.append(mask)
        part_of_row = parts.flatten()[plain.rows]
        is_json = ((part_of_row & JSON) != 0) if self._grammars is not None else torch.zeros_like(part_of_row).bool()
        return ToolBatch(
            input_ids=plain.input_ids,
            attention_mask=plain.attention_mask,
            labels=plain.labels,
            rows=plain.rows,
            parts=parts,
            choices=choices,
            json_rows=plain.rows[is_json],
            other_rows=plain.rows[~is_json & (part_of_row != 0)],
            free_rows=plain.rows[~is_json & (part_of_row == 0)],
            masks=torch.cat(masks) if masks else torch.zeros(0, self._num_words(), dtype=torch.int32),
            mask_of=mask_of,
        )

    def digest(self) -> str:
        """See `TrainingData.digest`."""
        spans = f"{self._spans} {self._spans_from} {self._rules}"
        return sha256_of(self._tokens.sha256(), self._parts, self._choices_at, self._choices, spans)

    def _num_words(self) -> int:
        return self._grammars.num_words if self._grammars is not None else 0

    def _masks(self, index: int) -> list[tuple[int, int, Tensor]]:
        """For each call of a sample: its first token, the one after its last, and the masks between them."""
        if self._grammars is None:
            return []
        masks = []
        for first, stop, rule in self._spans[self._spans_from[index] : self._spans_from[index + 1]]:
            ids = self._tokens.input_ids[first:stop].tolist()
            masks.append((first, stop, self._grammars.masks(self._rules[rule], ids)))
        return masks

    def _count_tokens(self) -> Tensor:
        """(samples, 1 + parts): the columns of `counts`."""
        is_predicted = self._tokens.is_predicted()
        columns = [is_predicted, *((self._parts & part) != 0 for part in _COUNTED.values())]
        table = torch.stack([column & is_predicted for column in columns], dim=1)
        return self._tokens.sums_before(table).diff(dim=0)


def tool_data(
    source: ToolSource,
    config: ToolDataConfig,
    tokenizer: PreTrainedTokenizerFast,
    cache: Path,
    *,
    ends_with_call: bool,
    has_masks: bool,
) -> ToolData:
    """Tokenize a source, or load its tokens from `cache`.

    Args:
        source: Checked lines.
        config: `data`.
        tokenizer: The student's.
        cache: A folder.
        ends_with_call: For lines with one call: end each after that turn, and learn nothing before it.
        has_masks: Put the masks of the tools' grammars into the batches.

    Raises:
        DataError: A line is too long, or a call violates its schema or cannot be found in the template's text.
        ModelMismatch: llguidance cannot read the tokenizer.
    """
    log_cut_off(source.samples)
    template = tokenizer.chat_template or BUILTIN_TEMPLATE
    lengths = (config.max_length, config.on_too_long)
    decides = (lengths, config.restated_words, ends_with_call, template, version("llguidance"))
    parts = (_FORMAT, source.sha256, tokenizer_hash(tokenizer), *decides)
    grammars = JsonGrammars(tokenizer)
    state = cached_state(
        cache, "calls", parts, lambda: _tokenize(source, config, tokenizer, grammars, ends_with_call=ends_with_call)
    )
    LengthCensus.of(state["lengths"]).report(source.where)
    tokens = TokenizedData.from_state(state, tokenizer)
    return ToolData(tokens, state, grammars=grammars if has_masks else None)


def _tokenize(
    source: ToolSource,
    config: ToolDataConfig,
    tokenizer: PreTrainedTokenizerFast,
    grammars: JsonGrammars,
    *,
    ends_with_call: bool,
) -> dict[str, Any]:
    census = LengthCensus(max_length=config.max_length, on_too_long=config.on_too_long)
    samples, whole = [], []
    for index, (fields, (_, conversation)) in enumerate(zip(source.samples, source.conversations(), strict=True)):
        place = source.place(fields)
        try:
            chat = render_conversation(conversation, tokenizer, min_words=config.restated_words)
            sample = tool_tokens(chat, conversation.offered(), tokenizer, grammars, ends_with_call=ends_with_call)
        except ValueError as error:
            raise place.error(str(error)) from error
        num_before = num_before_learned(sample.labels())
        # A call that is cut teaches nothing, an answer that is cut teaches its beginning.
        num_kept = census.tokens_kept(place, len(sample.ids), num_before=num_before, fewest=sample.end_of_calls() + 1)
        if num_kept == len(sample.ids):
            whole.append(index)
        if num_kept:
            samples.append(sample.first(num_kept))
    census.require_usable(source.where)
    return _joined(samples) | {"lengths": census.state(), "whole": whole}


def _joined(samples: list[ToolTokens]) -> dict[str, Any]:
    """All samples end to end, as tensors, and the grammars as text."""
    starts = list(accumulate((len(each.ids) for each in samples), initial=0))
    rules: dict[str, int] = {}
    spans: list[tuple[int, int, int]] = []
    spans_from = [0]
    choices: list[tuple[int, list[int]]] = []
    for sample, start in zip(samples, starts, strict=False):
        for first, end, rule in sample.grammars:
            spans.append((start + first, start + end, rules.setdefault(rule, len(rules))))
        spans_from.append(len(spans))
        choices += [(start + place, ids) for place, ids in sorted(sample.choices.items())]
    most = max((len(ids) for _, ids in choices), default=1)
    padded = [[*ids, *[-1] * (most - len(ids))] for _, ids in choices]
    return {
        **tokens_end_to_end([(each.ids, each.labels()) for each in samples]),
        "parts": torch.tensor([part for each in samples for part in each.parts], dtype=torch.uint8),
        "choices_at": torch.tensor([place for place, _ in choices], dtype=torch.long),
        "choices": torch.tensor(padded, dtype=torch.long).view(-1, most),
        "spans": torch.tensor(spans),
        "spans_from": torch.tensor(spans_from),
        "rules": list(rules),
    }
