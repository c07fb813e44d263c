"""What a loss over a large vocabulary takes.

`python -m benchmarks.device.checks.loss_memory WAY DEVICE` measures one way in a process of its own.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.device.rows import Row, Verdict, found_or_failed
from benchmarks.device.running import said_by
from benchmarks.device.sizes import SIZES, LossSize, Size
from crashproof.distillation.losses.chunked import values_of_rows
from crashproof.distillation.losses.divergences import cross_entropy_rows
from crashproof.distillation.settings.loss import LossConfig
from crashproof.optional_dependencies import is_installed

__all__ = ["check"]

_WAYS = {"dense": "dense", "ours": "crashproof, a few rows at a time", "liger": "Liger fused linear cross-entropy"}
_TINY = LossSize(vocabulary=64, width=16, num_tokens=16, repeats=1)
_MIB = 1 << 20
_CLOSE = 0.01


def check(size: Size, work: Path) -> Iterator[Row]:
    """Peak memory and time of cross-entropy from the hidden states through the head, and back."""
    dense: dict[str, float] = {}
    for way, title in _WAYS.items():
        shape = f"vocabulary {size.loss.vocabulary:,}, width {size.loss.width:,}, {size.loss.num_tokens:,} rows"
        what = f"{title}: {shape}"
        if way == "liger" and (missing := _missing(size.device)):
            yield Row(what=what, figure="", verdict=Verdict.NOT_HERE, why=missing)
            continue
        yield found_or_failed(what, lambda way=way, what=what: _compared(way, what, size.device, dense))


def _missing(device: str) -> str:
    if device != "cuda":
        return "Liger's kernels need a CUDA device; `pip install liger-kernel` there"
    return "" if is_installed("liger-kernel") else "liger-kernel is not installed: `pip install liger-kernel`"


def _run(way: str, device: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.device.checks.loss_memory", way, device]
    found: dict[str, float] = json.loads(said_by(command))
    return found


def _compared(way: str, what: str, device: str, dense: dict[str, float]) -> Row:
    """One way beside the dense one, which comes first and fills `dense`."""
    found = _run(way, device)
    if not dense:
        dense.update(found)
    peak, seconds = found["peak_mib"], found["seconds"]
    is_close = abs(found["loss"] - dense["loss"]) <= _CLOSE * abs(dense["loss"])
    return Row(
        what=what,
        figure=f"{peak:,.0f} MiB ({peak / max(dense['peak_mib'], 1e-9):.3f}x), {seconds * 1e3:,.1f} ms "
        f"({seconds / dense['seconds']:.2f}x)",
        verdict=Verdict.MEASURED if is_close else Verdict.FAILS,
        why="" if is_close else f"its loss is {found['loss']:.6g}, the dense one {dense['loss']:.6g}",
        values=found,
    )


def _measured(way: str, device: str) -> dict[str, float]:
    size = SIZES[device].loss
    # What is imported and loaded at the first use is no memory of the loss.
    _WAYS_TO_COMPUTE[way](_TINY, *_inputs(_TINY, device))[0]().backward()
    forward, parameters = _WAYS_TO_COMPUTE[way](size, *_inputs(size, device))
    for each in parameters:
        # In all ways the gradients are there already.
        each.grad = torch.zeros_like(each)
    before, seconds, losses = _bytes_before(device), [], []
    for _ in range(size.repeats + 1):
        _synchronize(device)
        begun = perf_counter()
        loss = forward()
        loss.backward()
        _synchronize(device)
        seconds.append(perf_counter() - begun)
        losses.append(loss.item())
    peak = (_peak_bytes(device) - before) / _MIB
    # The first time compiles and picks kernels.
    return {"peak_mib": peak, "seconds": median(seconds[1:]), "loss": losses[-1]}


def _inputs(size: LossSize, device: str) -> tuple[torch.nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    head = torch.nn.Linear(size.width, size.vocabulary, bias=False, device=device, dtype=dtype)
    hidden = torch.randn(size.num_tokens, size.width, device=device, dtype=dtype, requires_grad=True)
    return head, hidden, torch.randint(0, size.vocabulary, (size.num_tokens,), device=device)


def _dense(size: LossSize, head: torch.nn.Linear, hidden: Tensor, targets: Tensor) -> Any:
    return lambda: functional.cross_entropy(head(hidden).float(), targets), [head.weight, hidden]


def _ours(size: LossSize, head: torch.nn.Linear, hidden: Tensor, targets: Tensor) -> Any:
    rows = torch.arange(size.num_tokens, device=hidden.device)
    losses = {"ce": lambda logits, places: cross_entropy_rows(logits, targets[places])}

    def forward() -> Tensor:
        values = values_of_rows(hidden[None], head, rows, losses, chunk_tokens=LossConfig().chunk_tokens)
        return values["ce"].mean()

    return forward, [head.weight, hidden]


def _liger(size: LossSize, head: torch.nn.Linear, hidden: Tensor, targets: Tensor) -> Any:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    fused = LigerFusedLinearCrossEntropyLoss()
    return lambda: fused(head.weight, hidden, targets), [head.weight, hidden]


_WAYS_TO_COMPUTE: dict[str, Callable[..., Any]] = {"dense": _dense, "ours": _ours, "liger": _liger}


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _bytes_before(device: str) -> int:
    """What is there already, and is not counted."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    return _peak_bytes(device)


def _peak_bytes(device: str) -> int:
    """The most memory so far; on a CPU that of the process, which never shrinks."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(_measured(*sys.argv[1:])))
