"""The losses of calling tools.

Each takes the logits of some rows and gives a number a row, in nats, as those in `losses.py` do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["allowed_entries", "json_validity_rows", "name_choice_rows"]

_WORD_BITS = 32


def json_validity_rows(logits: Tensor, masks: Tensor) -> Tensor:
    """Minus the log of the probability mass on what a grammar still allows, in nats of each row, (rows,).

    Exactly zero where everything is allowed, and smooth: by d/dlogits the mass moves from what is forbidden to what
    is allowed, each in proportion to what it has. It is the semantic loss (Xu et al., "A Semantic Loss Function for
    Deep Learning with Symbolic Knowledge", 2018) of "the next token is an allowed one": the mass that
    grammar-constrained decoding (Geng et al., "Grammar-Constrained Decoding for Structured NLP Tasks without
    Finetuning", 2023) would cut away at this step.

    Computed as log(1 + forbidden / allowed), so that neither a mass near 1 nor one near 0 is lost to rounding.

    Args:
        logits: (rows, vocabulary), any float type; gradients flow here.
        masks: (rows, words) of int32: bit v % 32 of word v // 32 allows entry v; what lies beyond is not allowed.
            Each row allows something.
    """
    is_allowed = allowed_entries(masks, logits.shape[-1])
    # Not minus infinity: a row that forbids nothing has no mass there, and its gradient must be zero, not NaN.
    nothing = torch.finfo(logits.dtype).min
    allowed = logits.masked_fill(~is_allowed, nothing).logsumexp(dim=-1)
    forbidden = logits.masked_fill(is_allowed, nothing).logsumexp(dim=-1)
    return functional.softplus(forbidden - allowed)


def name_choice_rows(logits: Tensor, targets: Tensor, choices: Tensor) -> Tensor:
    """Cross-entropy with the next token among those that still spell an offered tool, in nats of each row, (rows,).

    Summed over the tokens of a name it is minus the log of the probability of that tool among the offered ones: the
    contrast with the distractors, whatever mass lies on other text. Zero where nothing is left to choose.

    Args:
        logits: (rows, vocabulary), any float type; gradients flow here.
        targets: (rows,) of int64.
        choices: (rows, most) of int64: ids, no one twice in a row, the target among them; -1 fills up.
    """
    of_choices = logits.gather(-1, choices.clamp(min=0)).masked_fill(choices < 0, -torch.inf)
    return of_choices.logsumexp(dim=-1) - logits.gather(-1, targets[:, None]).squeeze(-1)


def allowed_entries(masks: Tensor, vocab_size: int) -> Tensor:
    """Masks (rows, words) as (rows, vocab_size) of bool."""
    places = torch.arange(_WORD_BITS, dtype=masks.dtype, device=masks.device)
    bits = ((masks[:, :, None] >> places) & 1).flatten(1).to(torch.bool)[:, :vocab_size]
    return functional.pad(bits, (0, vocab_size - bits.shape[1]))
