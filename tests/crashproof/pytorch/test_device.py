import os
from collections.abc import Iterator

import pytest
import torch

from crashproof.errors import ConfigError
from crashproof.pytorch.device import choose_device, compute_deterministically


@pytest.fixture
def settings_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    fills = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
    torch.utils.deterministic.fill_uninitialized_memory = fills
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Which devices PyTorch says it has; change it."""
    devices = {"cuda": False, "mps": False, "bf16": True}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices["cuda"])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: devices["bf16"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: devices["mps"])
    return devices


@pytest.mark.parametrize(
    "devices, expected",
    [
        ({}, "cpu in float32"),
        ({"mps": True}, "mps in float32"),
        ({"cuda": True}, "cuda in bfloat16"),
        ({"cuda": True, "bf16": False}, "cuda in float16"),
        ({"cuda": True, "mps": True}, "cuda in bfloat16"),
    ],
    ids=["nothing else", "MPS", "CUDA", "CUDA without bfloat16", "both"],
)
def test_the_best_device_is_chosen_by_itself(found: dict[str, bool], devices: dict[str, bool], expected: str) -> None:
    found |= devices

    assert expected == str(choose_device())


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_an_error(found: dict[str, bool], name: str) -> None:
    with pytest.raises(ConfigError, match=f"train.device: {name} is not available here. Use one of: auto, cpu"):
        choose_device(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "precision, expected", [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_products_have_the_requested_precision(precision: str, expected: torch.dtype) -> None:
    device = choose_device("cpu", precision)  # type: ignore[arg-type]

    with device.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)

    assert expected == product.dtype
    assert (expected == torch.float16) == device.grad_scaler().is_enabled()


@pytest.mark.usefixtures("settings_as_they_were")
def test_deterministic_algorithms_are_used_without_filling_memory() -> None:
    compute_deterministically()

    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert ":4096:8" == os.environ["CUBLAS_WORKSPACE_CONFIG"]
