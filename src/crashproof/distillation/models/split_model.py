"""A causal language model as its body and its head."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.utils.generic import ModelOutput

from crashproof.distillation.losses.chunked import values_of_rows
from crashproof.distillation.losses.divergences import cross_entropy_rows
from crashproof.distillation.models.deferred.weights import is_in_memory
from crashproof.distillation.models.lora import without_adapters
from crashproof.distillation.models.text_model import text_config

__all__ = ["Hidden", "Root", "SplitModel"]

log = logging.getLogger("crashproof")

ResultT = TypeVar("ResultT")

_PROBE_TOKENS = 4
_LARGE_LOGIT = 1000.0
"""Far above any soft cap: fresh weights alone make logits that a cap hardly changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """The output of a model's body for one batch."""

    last: Tensor
    """(batch, length, width): the input of the head."""
    layers: tuple[Tensor, ...] = ()
    """Of the embedding and of each layer, (batch, length, width); only on request."""


class Root(Protocol):
    """Something that makes a model's weights complete for the time of a call."""

    def __call__(self, call: Callable[[], ResultT]) -> ResultT:
        """The result of the call."""
        ...


class SplitModel:
    """Computes logits a few rows at a time, instead of all at once.

    Some models do more to their logits than one matrix product (a soft cap, a scale). A few tokens, and states large
    enough to reach any cap, show whether body and head together give the model's logits; if not, the whole model is
    the body, and all its logits are in memory at once.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Weights may not be in memory yet; then `examine` has to be called once they are."""
        self.model = model
        # Adapters are inside the layers: body and head are those of the inner model.
        self._within = without_adapters(model)
        self._cache: Cache | None = None
        self._root: Root = _run_directly
        self.is_split = False
        if is_in_memory(model):
            self.examine()

    def examine(self) -> None:
        """Find out what the model does to its logits, and whether it takes an empty cache."""
        self._cache = _EmptyCache() if self._accepts(_EmptyCache()) else None
        self.is_split = self._is_body_and_head()
        if not self.is_split:
            name = type(self._within).__name__
            log.info("%s computes its logits with more than its head: all of them are made at once.", name)

    def run_within(self, root: Root) -> None:
        """Call the body through a root from now on; what the root completes for it stays so for the head."""
        self._root = root

    def hidden(self, input_ids: Tensor, *, with_layers: bool = False) -> Hidden:
        """The body's output for token ids (batch, length) that are padded on the right.

        No padding mask is given: a position attends to none behind it, so padding changes nothing before it, and what
        stands at the padding itself is not used.
        """
        body = self._within.base_model if self.is_split else self._within
        output = self._root(
            lambda: body(
                input_ids=input_ids, output_hidden_states=with_layers, use_cache=False, past_key_values=self._cache
            )
        )
        last = output.last_hidden_state if self.is_split else output.logits
        return Hidden(last=last, layers=tuple(output.hidden_states) if with_layers else ())

    def logits(self, states: Tensor) -> Tensor:
        """(rows, vocabulary) from (rows, width)."""
        if not self.is_split:
            return states
        logits: Tensor = self._within.get_output_embeddings()(states)  # type: ignore[no-untyped-call]  # of transformers
        return logits

    def cross_entropies(self, input_ids: Tensor, targets: Tensor, rows: Tensor, *, chunk_tokens: int) -> Tensor:
        """Minus log p of the target at each of these rows, in nats; see `values_of_rows`."""
        flat = targets.flatten()
        values = values_of_rows(
            self.hidden(input_ids).last,
            self.logits,
            rows,
            {"ce": lambda logits, positions: cross_entropy_rows(logits, flat[positions])},
            chunk_tokens=chunk_tokens,
        )
        return values["ce"]

    def _is_body_and_head(self) -> bool:
        head = self._within.get_output_embeddings()  # type: ignore[no-untyped-call]  # of transformers
        if head is None or self._within.base_model is self._within:
            return False

        def parts(ids: Tensor) -> Tensor:
            return cast(Tensor, head(self._within.base_model(input_ids=ids, use_cache=False).last_hidden_state))

        return self._has_same_logits(parts) and self._has_same_large_logits(head)

    def _accepts(self, cache: Cache) -> bool:
        def with_cache(ids: Tensor) -> Tensor:
            return cast(Tensor, self._within(input_ids=ids, use_cache=False, past_key_values=cache).logits)

        try:
            return self._has_same_logits(with_cache)
        except Exception as error:  # A model's own code may raise anything for a cache that it does not expect.
            log.debug("%s does not accept an empty cache: %s", type(self._within).__name__, error)
            return False

    def _has_same_large_logits(self, head: nn.Module) -> bool:
        """Whether the model still does nothing but its head's product where the body puts out large states."""
        enlarged: list[Tensor] = []

        def enlarge(body: nn.Module, args: object, output: ModelOutput) -> ModelOutput:
            states = output["last_hidden_state"]
            largest = head(states).abs().amax().clamp(min=torch.finfo(states.dtype).tiny)
            enlarged.append(states * (_LARGE_LOGIT / largest))
            output["last_hidden_state"] = enlarged[-1]
            return output

        hook = self._within.base_model.register_forward_hook(enlarge)
        try:
            return self._has_same_logits(lambda ids: cast(Tensor, head(enlarged[-1])))
        finally:
            hook.remove()

    @torch.no_grad()
    def _has_same_logits(self, otherwise: Callable[[Tensor], Tensor]) -> bool:
        was_training = self.model.training
        self.model.train(False)
        try:
            device = next(self._within.parameters()).device
            ids = torch.arange(_PROBE_TOKENS, device=device).remainder(text_config(self._within).vocab_size)[None]
            whole, other = self._within(input_ids=ids, use_cache=False).logits, otherwise(ids)
        finally:
            self.model.train(was_training)
        return whole.shape == other.shape and torch.allclose(whole, other, rtol=1e-3, atol=1e-4)


def _run_directly(call: Callable[[], ResultT]) -> ResultT:
    return call()


class _EmptyCache(Cache):
    """A cache that stays empty.

    Without a mask and without a cache, `transformers` inspects the positions at every call, to see whether several
    sequences are packed into one; that synchronises with the device.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: Tensor, value_states: Tensor, *more: object, **others: object
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0
