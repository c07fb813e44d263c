from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from crashproof.pytorch.staging import host_copies
from crashproof.pytorch.staging.copier import StateCopier
from crashproof.pytorch.staging.device_copies import DeviceCopies
from crashproof.pytorch.staging.host_copies import HostCopies


def state() -> dict[str, Tensor]:
    """Tensors of every kind that a state has."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 30, generator=generator)
    return {
        "weight": weight,
        "tied": weight,
        "bfloat16": torch.randn(7, 3, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(7, dtype=torch.int64),
        "step": torch.tensor(3.0),
        "none": torch.zeros(0, 5),
        "flags": torch.tensor([True, False, True]),
        "not a number": torch.tensor([math.nan, math.inf, -0.0]),
        "transposed": torch.randn(5, 8, generator=generator).T,
        "channels last": torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
        "every other": torch.randn(10, 6, generator=generator)[::2, ::3],
        "expanded": torch.randn(1, 4, generator=generator).expand(3, 4),
        "parameter": torch.nn.Parameter(torch.randn(9, generator=generator)),
    }


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def content(tensors: dict[str, Tensor] | None) -> dict[str, tuple[bytes, torch.dtype, torch.Size]]:
    assert tensors is not None
    return {name: (bits(each), each.dtype, each.shape) for name, each in tensors.items()}


@pytest.mark.parametrize("copies", [HostCopies, DeviceCopies])
@pytest.mark.parametrize("is_prepared", [True, False], ids=["prepared", "not prepared"])
def test_a_copy_has_all_bits_and_stays_while_training_goes_on(
    copies: type[HostCopies | DeviceCopies], is_prepared: bool
) -> None:
    tensors, copier = state(), copies()
    if is_prepared:
        copier.prepare(tensors)
    before = content(tensors)
    copied = copier.copy(tensors)
    for each in tensors.values():
        if each.is_floating_point() and each.numel() == each.untyped_storage().nbytes() // each.element_size():
            each.detach().fill_(8.0)

    assert before == content(copied)
    assert before != content(tensors)
    assert content(tensors) == content(copier.copy(tensors))
    copier.close()


def test_every_copy_uses_the_memory_that_was_prepared() -> None:
    tensors, copier = state(), HostCopies()
    copier.prepare(tensors)
    first = {name: each.data_ptr() for name, each in copier.copy(tensors).items()}
    second = {name: each.data_ptr() for name, each in copier.copy(tensors).items()}

    assert first == second
    assert first["weight"] == first["tied"] != tensors["weight"].data_ptr()


def test_memory_is_touched_before_the_first_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[int] = []
    monkeypatch.setattr(host_copies._Pair, "claim", lambda pair: touched.append(pair.target.data_ptr()))
    tensors, copier = state(), HostCopies()
    copier.prepare(tensors)
    copier.prepare(tensors)

    # Once, and the tied weight is one.
    assert len(tensors) - 1 == len(touched)
    assert {each.data_ptr() for each in copier.copy(tensors).values()} == set(touched)


def test_a_tensor_that_takes_the_place_of_another_is_copied() -> None:
    tensors, copier = state(), HostCopies()
    copier.copy(tensors)
    tensors["weight"] = torch.full((2, 2), 5.0)

    assert content(tensors) == content(copier.copy(tensors))


def test_a_saved_copy_is_as_large_as_what_it_copies(tmp_path: Path) -> None:
    tensors = {"part": torch.zeros(1000, 10)[:10], "whole": torch.zeros(10, 10)}
    torch.save(HostCopies().copy(tensors), tmp_path / "copy")

    assert (tmp_path / "copy").stat().st_size < 4000


def test_where_memory_is_short_there_is_no_copy_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    tensors, free = {"weight": torch.zeros(1 << 18)}, [1000]
    copier = StateCopier(free_bytes=lambda: free[0])
    with caplog.at_level(logging.WARNING, logger="crashproof"):
        copier.prepare(tensors)
        assert [None, None] == [copier.copy(tensors) for _ in range(2)]

    assert 1 == len(caplog.messages)
    assert "no memory for a copy of the training state (1.0 MB): 1.0 kB are free." in caplog.messages[0]
    # Later there is.
    free[0] = 1 << 30
    assert content(tensors) == content(copier.copy(tensors))
    copier.close()


def test_a_prepared_copy_needs_no_more_memory() -> None:
    tensors, free = state(), [1 << 30]
    copier = StateCopier(free_bytes=lambda: free[0])
    copier.prepare(tensors)
    free[0] = 0

    assert content(tensors) == content(copier.copy(tensors))


def test_without_knowing_what_is_free_the_copy_is_made() -> None:
    copier = StateCopier(free_bytes=lambda: None)

    assert content(state()) == content(copier.copy(state()))


def test_memory_that_the_system_refuses_is_no_copy(caplog: pytest.LogCaptureFixture) -> None:
    # More than an address can reach; nothing looks into it.
    tensors = {"weight": torch.zeros(1).expand(1 << 50)}
    copier = StateCopier(free_bytes=lambda: None)
    with caplog.at_level(logging.WARNING, logger="crashproof"):
        assert None is copier.copy(tensors)

    assert "no memory for a copy of the training state (4503.6 TB)" in caplog.messages[0]
    copier.close()


def test_a_failure_of_the_preparation_leaves_the_rest_to_the_first_save(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(copies: object, tensors: object) -> None:
        raise RuntimeError("the device is busy")

    monkeypatch.setattr(HostCopies, "prepare", fail)
    tensors, copier = state(), StateCopier()
    copier.prepare(tensors)

    assert content(tensors) == content(copier.copy(tensors))
    assert ["The memory for saves could not be prepared (the device is busy): the first save takes longer."] == (
        caplog.messages
    )


def test_other_errors_of_a_copy_from_a_device_are_not_taken_for_short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(stager: object, tensors: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(DefaultStager, "stage", fail)
    message = "CUDA error: an illegal address was encountered"
    with pytest.raises(RuntimeError, match="illegal address"):
        DeviceCopies().copy({})
    message = "CUDA error: out of memory"
    with pytest.raises(MemoryError):
        DeviceCopies().copy({})


def test_a_copy_of_a_sharded_tensor_is_its_part_and_knows_the_whole() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = DeviceMesh("cpu", [0])
        sharded = distribute_tensor(torch.arange(12.0).reshape(4, 3), mesh, [Shard(0)])
        copied = HostCopies().copy({"sharded": sharded})["sharded"]

        assert isinstance(copied, DTensor)
        assert (sharded.shape, sharded.stride(), sharded.placements) == (
            copied.shape,
            copied.stride(),
            copied.placements,
        )
        assert sharded.to_local().data_ptr() != copied.to_local().data_ptr()
        assert torch.equal(sharded.to_local(), copied.to_local())
    finally:
        dist.destroy_process_group()


def test_a_copier_that_was_not_used_is_closed() -> None:
    StateCopier().close()
