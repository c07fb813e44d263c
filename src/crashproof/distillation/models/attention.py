"""Attention with a deterministic backward pass.

On CUDA, PyTorch's attention adds up gradients in an order of chance, unless operations that are not deterministic are
errors. To the trainers they are warnings, as some have no other algorithm. So they are errors while attention
computes, and only then: forwards, where a kernel that cannot do otherwise would be chosen, and backwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

__all__ = ["attend_deterministically"]

_WARN = 1
_KERNEL = "ScaledDotProduct"
_MOST_VIEWS = 4
"""What `transformers` does to a result of the kernel: it is transposed, and copied."""


def attend_deterministically() -> None:
    """Register it as the `sdpa` of `transformers`, for all models of this process; compiled layers do without it.

    It changes nothing where operations that are not deterministic raise no warning.
    """
    AttentionInterface.register("sdpa", _attend)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    if torch.compiler.is_compiling() or torch.get_deterministic_debug_mode() != _WARN:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    _raise_errors()
    try:
        output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    finally:
        _give_warnings()
    kernel = _kernel_of(output)
    if kernel is not None:
        kernel.register_prehook(_raise_errors)
        kernel.register_hook(_give_warnings)
    return output, weights


def _kernel_of(output: Tensor) -> Node | None:
    """The step of the backward pass that has a kernel of its own; none where attention is made of plain products."""
    node = output.grad_fn
    for _ in range(_MOST_VIEWS):
        if node is None or node.name().startswith(_KERNEL):
            return node
        node = node.next_functions[0][0] if node.next_functions else None
    return None


def _raise_errors(*gradients: Any) -> None:
    torch.set_deterministic_debug_mode("error")


def _give_warnings(*gradients: Any) -> None:
    torch.set_deterministic_debug_mode("warn")
