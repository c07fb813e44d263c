"""The losses of tool calls.

Each maps the logits of some rows to one value per row, in nats, like those in `divergences.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["allowed_entries", "json_validity_rows", "name_choice_rows"]

_WORD_BITS = 32


def json_validity_rows(logits: Tensor, masks: Tensor) -> Tensor:
    """Minus the log of the probability mass on the entries that a grammar allows, in nats of each row, (rows,).

    Exactly zero if every entry is allowed, and smooth: the gradient moves mass from forbidden to allowed entries, in
    proportion to their probabilities. It is the semantic loss (Xu et al., "A Semantic Loss Function for
    Deep Learning with Symbolic Knowledge", 2018) of "the next token is an allowed one": the mass that
    grammar-constrained decoding (Geng et al., "Grammar-Constrained Decoding for Structured NLP Tasks without
    Finetuning", 2023) would cut away at this step.

    Computed as log(1 + forbidden / allowed), so that masses near 1 and near 0 are not lost to rounding.

    Args:
        logits: (rows, vocabulary), any float type; gradients flow here.
        masks: (rows, words) of int32: bit v % 32 of word v // 32 allows entry v; further entries are not allowed.
            Each row allows at least one entry.
    """
    is_allowed = allowed_entries(masks, logits.shape[-1])
    # Not minus infinity: the gradient of a row that forbids nothing must be zero, not NaN.
    nothing = torch.finfo(logits.dtype).min
    allowed = logits.masked_fill(~is_allowed, nothing).logsumexp(dim=-1)
    forbidden = logits.masked_fill(is_allowed, nothing).logsumexp(dim=-1)
    return functional.softplus(forbidden - allowed)


def name_choice_rows(logits: Tensor, targets: Tensor, choices: Tensor) -> Tensor:
    """Cross-entropy with the next token among those that still spell an offered tool, in nats of each row, (rows,).

    Summed over the tokens of a name it is minus the log of the probability of that tool among the offered ones: the
    contrast with the distractors, regardless of the mass on other text. Zero if there is only one choice.

    Args:
        logits: (rows, vocabulary), any float type; gradients flow here.
        targets: (rows,) of int64.
        choices: (rows, most) of int64: distinct ids, the target among them; padded with -1.
    """
    of_choices = logits.gather(-1, choices.clamp(min=0)).masked_fill(choices < 0, -torch.inf)
    return of_choices.logsumexp(dim=-1) - logits.gather(-1, targets[:, None]).squeeze(-1)


def allowed_entries(masks: Tensor, vocab_size: int) -> Tensor:
    """Masks (rows, words) as (rows, vocab_size) of bool."""
    places = torch.arange(_WORD_BITS, dtype=masks.dtype, device=masks.device)
    bits = ((masks[:, :, None] >> places) & 1).flatten(1).to(torch.bool)[:, :vocab_size]
    return functional.pad(bits, (0, vocab_size - bits.shape[1]))
