"""Tell of hardware that may let copies of the weights drift apart."""

from __future__ import annotations

import logging
import platform

import torch

from crashproof.distillation.settings.train import TrainConfig
from crashproof.pytorch.ranks import Ranks
from crashproof.rules.agreement.verdict import as_sentence

__all__ = ["hardware_of", "warn_of_mixed_hardware"]

log = logging.getLogger("crashproof")


def warn_of_mixed_hardware(ranks: Ranks, train: TrainConfig, hardware: str) -> None:
    """Warn once if processes that each update a copy of the weights compute on different hardware."""
    if ranks.num_ranks == 1 or train.strategy != "ddp":
        return
    found = ranks.all_gather(hardware, "comparing the hardware")
    sentence = as_sentence([{"the hardware": each} for each in found], [""] * len(found))
    if sentence and ranks.is_main:
        log.warning(
            "The processes differ in %s. With train.strategy ddp each updates a copy of the weights; if the copies "
            "drift apart, the run ends and names the ranks. With fsdp there is one copy.",
            sentence,
        )


def hardware_of(device: torch.device) -> str:
    """What this process computes on, as far as results may depend on it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
