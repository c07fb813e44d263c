"""The check of a resumed run notices what is not exact."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.device.checks.exact_resume import differences, has_reached, nondeterministic

WARNINGS = """
torch/autograd/graph.py:869: UserWarning: Flash Attention defaults to a non-deterministic algorithm. To explicitly
enable determinism call torch.use_deterministic_algorithms(True, warn_only=False). (Triggered internally at a.cu:124.)
x.py:3: UserWarning: cumsum_cuda_kernel does not have a deterministic implementation, but you set
'torch.use_deterministic_algorithms(True, warn_only=True)'.
"""


def state(**changed: object) -> dict[str, object]:
    content = {"tensors": {"weight": torch.tensor([1.0, 2.0])}, "counters": {"step": 3}, "list": [1, (2, 3)]}
    return content | changed


def test_one_changed_bit_is_named() -> None:
    weight = torch.tensor([1.0, 2.0])
    weight.view(torch.int32)[1] += 1

    assert [] == differences(state(), state())
    assert ["tensors.weight"] == differences(state(), state(tensors={"weight": weight}))
    assert ["counters.step", "list.1.1"] == differences(state(), state(counters={"step": 4}, list=[1, (2, 4)]))
    assert ["tensors: the keys"] == differences(state(), state(tensors={}))


def test_operations_that_pytorch_calls_not_deterministic_are_named() -> None:
    assert "Flash Attention, cumsum_cuda_kernel" == nondeterministic(WARNINGS)
    assert "" == nondeterministic("step 1 of 2")


def test_a_run_is_killed_once_it_has_a_checkpoint_and_is_beyond_the_step(tmp_path: Path) -> None:
    progress = tmp_path / "progress"
    look = has_reached(tmp_path, 20)

    assert not look()
    progress.mkdir()
    (progress / "metrics.jsonl").write_text('{"step":19,"loss":1}\n{"step":20,"loss":1}\n')
    assert not look()
    (progress / "checkpoints.json").write_text('{"checkpoints":{"10":{"checkpoint_step":10}}}')
    assert look()
    (progress / "metrics.jsonl").write_text('{"step":19,"loss":1}\n')
    assert not look()
