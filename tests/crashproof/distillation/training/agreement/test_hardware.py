from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from thread_ranks import ThreadRanks, ranks_in_threads

from crashproof.distillation.settings.train import TrainConfig
from crashproof.distillation.training.agreement.hardware import hardware_of, warn_of_mixed_hardware


def compare(hardware: list[str], strategy: str = "ddp") -> None:
    def of_one(ranks: ThreadRanks) -> None:
        warn_of_mixed_hardware(ranks, TrainConfig(strategy=strategy), hardware[ranks.rank])

    with ThreadPoolExecutor(len(hardware)) as pool:
        list(pool.map(of_one, ranks_in_threads(len(hardware))))


def test_other_hardware_is_told_once_where_each_process_updates_a_copy(caplog: pytest.LogCaptureFixture) -> None:
    compare(["NVIDIA A100", "NVIDIA A100", "NVIDIA H100"])

    assert 1 == len(caplog.messages)
    assert caplog.messages[0].startswith(
        "The processes differ in the hardware: NVIDIA H100 on rank 2, NVIDIA A100 on ranks 0-1. With train.strategy"
    )


@pytest.mark.parametrize(
    "hardware, strategy",
    [(["A", "A"], "ddp"), (["A", "B"], "fsdp"), (["A"], "ddp")],
    ids=["same", "one-copy", "alone"],
)
def test_nothing_is_said_where_nothing_can_drift(
    hardware: list[str], strategy: str, caplog: pytest.LogCaptureFixture
) -> None:
    compare(hardware, strategy)

    assert [] == caplog.messages


def test_a_processor_is_named_with_the_instructions_that_are_used() -> None:
    assert hardware_of(torch.device("cpu")).endswith(f" with {torch.backends.cpu.get_cpu_capability()}")
