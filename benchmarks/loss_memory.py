"""What a loss over a large vocabulary holds in memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch.nn import functional

from benchmarks.figures import Section
from crashproof.distillation.losses.chunked import values_of_rows
from crashproof.distillation.losses.divergences import cross_entropy_rows, forward_kl_rows

__all__ = ["measure"]

_VOCABULARY = 128_000
_WIDTH = 256
_TOKENS = 8192
_DENSE_TOKENS = 1024
"""So many fit into memory the dense way; what it holds grows with them in proportion."""
_REPEATS = 3


def measure(work: Path, *, is_full: bool) -> Section:  # `is_full` changes nothing here.
    """Peak memory of KL and cross-entropy, forwards and backwards, each in a process of its own."""
    ours_small, ours = _run("ours", _DENSE_TOKENS), _run("ours", _TOKENS)
    dense = _run("dense", _DENSE_TOKENS)
    dense_peak = dense[0] * _TOKENS / _DENSE_TOKENS
    rows = [
        ["a few rows at a time", f"{_TOKENS:,}", f"{ours[0]:,.0f} MiB", f"{ours[0] / dense_peak:.3f}x", "", ""],
        ["dense", f"{_TOKENS:,}", f"{dense_peak:,.0f} MiB, by proportion", "1x", "", ""],
        [
            *("a few rows at a time", f"{_DENSE_TOKENS:,}", f"{ours_small[0]:,.0f} MiB"),
            *(f"{ours_small[0] / dense[0]:.3f}x", f"{ours_small[1]:.2f} s", f"{ours_small[1] / dense[1]:.2f}x"),
        ],
        ["dense", f"{_DENSE_TOKENS:,}", f"{dense[0]:,.0f} MiB", "1x", f"{dense[1]:.2f} s", "1x"],
    ]
    return Section(
        title="Memory of a loss over a large vocabulary",
        columns=["KL and cross-entropy", "tokens", "peak beside inputs", "against dense", "time", "against dense"],
        rows=rows,
        notes=[
            f"Vocabulary {_VOCABULARY:,}, hidden width {_WIDTH}, fp32, on the CPU: both passes from the hidden "
            "states of student and teacher through both heads; the most resident memory of a process, less what it "
            "had with its inputs and gradients of weights in place. Goal: under half of dense."
        ],
    )


def _run(way: str, num_tokens: int) -> tuple[float, float]:
    """MiB and seconds of one way."""
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.loss_memory", way, str(num_tokens)],
        check=True,
        capture_output=True,
        text=True,
    )
    peak, seconds = said.stdout.split()
    return float(peak), float(seconds)


def _dense(student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    wanted = functional.log_softmax(teacher / 2, dim=-1)
    given = functional.log_softmax(student / 2, dim=-1)
    kl = 4 * functional.kl_div(given, wanted, log_target=True, reduction="sum")
    return kl + functional.cross_entropy(student, targets, reduction="sum")


def _measured(way: str, num_tokens: int) -> tuple[float, float]:
    torch.manual_seed(0)
    hidden = torch.randn(1, num_tokens, _WIDTH, requires_grad=True)
    teacher_hidden = torch.randn(num_tokens, _WIDTH)
    heads = [torch.nn.Linear(_WIDTH, _VOCABULARY, bias=False) for _ in range(2)]
    heads[1].requires_grad_(requires_grad=False)
    targets = torch.randint(0, _VOCABULARY, (num_tokens,))
    rows = torch.arange(num_tokens)

    def ours() -> torch.Tensor:
        def kl(logits: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                teacher_logits = heads[1](teacher_hidden[places])
            return forward_kl_rows(logits, teacher_logits, vocab_size=_VOCABULARY, temperature=2.0, scale=4.0)

        losses = {"kl": kl, "ce": lambda logits, places: cross_entropy_rows(logits, targets[places])}
        values = values_of_rows(hidden, heads[0], rows, losses, chunk_tokens=512)
        return values["kl"].sum() + values["ce"].sum()

    def dense() -> torch.Tensor:
        with torch.no_grad():
            teacher_logits = heads[1](teacher_hidden)
        return _dense(heads[0](hidden[0]), teacher_logits, targets)

    # The gradient of the head is there in both.
    heads[0].weight.grad = torch.zeros_like(heads[0].weight)
    hidden.grad = torch.zeros_like(hidden)
    heads[0].weight.grad.fill_(0.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = []
    for _ in range(_REPEATS if num_tokens == _DENSE_TOKENS else 1):
        begun = perf_counter()
        (ours() if way == "ours" else dense()).backward()
        seconds.append(perf_counter() - begun)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before, median(seconds)


if __name__ == "__main__":
    print(*_measured(sys.argv[1], int(sys.argv[2])))
