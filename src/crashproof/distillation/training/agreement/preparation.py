"""Make sure that all processes have made the same of the same files."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crashproof.distillation.data.text_data import TrainingData
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.text.tokenizer import tokenizer_hash
from crashproof.distillation.training.agreement.inputs import describe_source
from crashproof.distillation.training.preparation import Prepared
from crashproof.pytorch.coordination.agreement import all_or_none, require_same
from crashproof.pytorch.ranks import Ranks
from crashproof.pytorch.tensor_digest import sha256_of, short_digest

__all__ = ["require_same_preparation"]

_HINT = "The files are the same. Look for a cache of another run in the output folder, or for other hardware."


def require_same_preparation(ranks: Ranks, config: RunConfig, prepared: Prepared) -> None:
    """Compare what was made of the files: tokens in their order, and weights that no folder of the user's holds.

    Raises:
        RanksDisagree: A process has made something else of the same files; names what, and the ranks.
    """
    if ranks.num_ranks == 1:
        return
    with all_or_none(ranks, "digesting what was prepared"):
        description = _describe(prepared, config)
    require_same(ranks, description, what="tokens and first weights", hint=_HINT)


def _describe(prepared: Prepared, config: RunConfig) -> dict[str, str]:
    tokenizer, held_out = prepared.tokenizer, prepared.held_out
    return {
        "the held-out data": "none" if held_out is None else describe_source(held_out),
        "the tokenizer": short_digest(tokenizer_hash(tokenizer)),
        "the chat template": short_digest(sha256_of(str(tokenizer.chat_template))),
        "the tokens for end and padding": f"{tokenizer.eos_token_id} and {tokenizer.pad_token_id}",
        "the tokens": _describe_tokens(prepared.data),
        "the held-out tokens": "none" if prepared.held_out_data is None else _describe_tokens(prepared.held_out_data),
        "the built-in teacher's weights": _describe_weights(_weights_of_teacher(prepared, config)),
        "the first weights of what is trained": _describe_weights(_new_weights(prepared.recipe, config)),
        "the random numbers that follow": short_digest(sha256_of(torch.get_rng_state())),
    }


def _describe_tokens(data: TrainingData) -> str:
    return f"{len(data):,} samples ({short_digest(data.digest())})"


def _describe_weights(weights: Mapping[str, Tensor]) -> str:
    """The weights that are in memory; those on the meta device have no values yet."""
    parts = [part for name, tensor in weights.items() for part in (name, tensor) if not tensor.is_meta]
    return short_digest(sha256_of(*parts)) if parts else "none"


def _weights_of_teacher(prepared: Prepared, config: RunConfig) -> Mapping[str, Tensor]:
    teacher = prepared.teacher
    return {} if teacher is None or config.teacher.path is not None else dict(teacher.state_dict())


def _new_weights(recipe: nn.Module, config: RunConfig) -> dict[str, Tensor]:
    """The weights that were drawn, and not read from the student's folder."""
    is_read = config.student.path is not None and config.student.lora is None
    return {
        name: weight.detach()
        for name, weight in recipe.named_parameters()
        if weight.requires_grad and not (is_read and name.startswith("student."))
    }
