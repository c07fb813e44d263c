"""A causal language model as its body and its head."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

__all__ = ["Hidden", "SplitModel"]

log = logging.getLogger("holdfast")

_PROBE_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """What a model's body gives for one batch."""

    last: Tensor
    """(batch, length, width): what the head is given."""
    layers: tuple[Tensor, ...] = ()
    """Of the embedding and of each layer, (batch, length, width); only where they were asked for."""


class SplitModel:
    """Lets logits be made a few rows at a time, instead of all at once.

    Some models do more to their logits than one matrix product (a soft cap, a scale). Whether body and head together
    say what the whole model says is tried out on a few tokens; where they do not, the whole model is the body, and
    all its logits are alive at once.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        # A model with adapters around it; they sit inside the layers of the model within.
        self._within: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.is_split = self._is_its_parts()
        if not self.is_split:
            name = type(self._within).__name__
            log.info("%s does more to its logits than its head does: all of them are made at once.", name)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor, *, with_layers: bool = False) -> Hidden:
        """The body's output; tensors of shape (batch, length)."""
        body = self._within.base_model if self.is_split else self._within
        output = body(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=with_layers, use_cache=False
        )
        last = output.last_hidden_state if self.is_split else output.logits
        return Hidden(last=last, layers=tuple(output.hidden_states) if with_layers else ())

    def logits(self, states: Tensor) -> Tensor:
        """(rows, vocabulary) from (rows, width)."""
        if not self.is_split:
            return states
        made: Tensor = self._within.get_output_embeddings()(states)
        return made

    @torch.no_grad()
    def _is_its_parts(self) -> bool:
        head = self._within.get_output_embeddings()
        body = self._within.base_model
        if head is None or body is self._within:
            return False
        was_training = self._model.training
        self._model.train(False)
        try:
            vocab_size = self._within.config.vocab_size
            ids = torch.arange(_PROBE_TOKENS, device=head.weight.device).remainder(vocab_size)[None]
            mask = torch.ones_like(ids)
            whole = self._within(input_ids=ids, attention_mask=mask, use_cache=False).logits
            parts = head(body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state)
        finally:
            self._model.train(was_training)
        return whole.shape == parts.shape and torch.allclose(whole, parts, rtol=1e-3, atol=1e-4)
