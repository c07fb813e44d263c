"""What a process was started with."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import crashproof
from crashproof.checkpoints.digest import digest_of_names
from crashproof.digests import BLAKE3, hexadecimal_of
from crashproof.distillation.settings.run import RunConfig
from crashproof.pytorch.device import ComputeDevice
from crashproof.rules.agreement.host_keys import comparable_config

__all__ = ["describe_start"]

_LIBRARIES = (
    *("crashproof", "torch", "transformers", "tokenizers", "safetensors", "numpy", "peft", "llguidance", "jinja2"),
)
"""Those that compute, tokenize, or render what is tokenized."""
_VARIABLES = (
    # Which instructions compute on a CPU: sums and products are rounded in another way.
    *("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA"),
    # In which precision.
    *("DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE"),
    *("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE"),
    # Whether layers are compiled.
    *("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"),
    # How processes add up their gradients: other choices on one rank would hang.
    *("NCCL_ALGO", "NCCL_PROTO"),
)
"""The variables of the environment that change the numbers, or how they are added up."""
_DIGITS = 16


def describe_start(
    recipe: str, config: RunConfig, device: ComputeDevice, *, resume: str, environment: Mapping[str, str]
) -> dict[str, str]:
    """All that must be the same on all processes, by name, in the order in which differences are named.

    Args:
        recipe: The name of the task.
        config: As it was loaded, before the data or models decide anything in it.
        device: The one that was chosen for this process.
        resume: `auto`, `never`, or a path, whose content is compared later.
        environment: Of this process.
    """
    return {
        "recipe": recipe,
        **comparable_config(config.model_dump(mode="json")),
        "--resume": resume if resume in ("auto", "never") else "a path",
        "the device": str(device),
        **{f"the version of {name}": found for name, found in (_versions() | _cuda_versions(device)).items()},
        **{f"the environment's {name}": environment[name] for name in _VARIABLES if name in environment},
        **{f"crashproof/{name}": digest for name, digest in _digests_of_code().items()},
    }


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            # An extra that this run may not need, or crashproof as a folder of sources.
            continue
    return found


def _cuda_versions(device: ComputeDevice) -> dict[str, str]:
    """Of what comes with PyTorch, and may be replaced by a library of the system."""
    if device.device.type != "cuda":
        return {}
    nccl: object = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]  # torch leaves it so.
    cudnn: object = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]  # Likewise.
    return {"CUDA": str(torch.version.cuda), "cuDNN": str(cudnn), "NCCL": str(nccl)}


def _digests_of_code() -> dict[str, str]:
    folder = Path(crashproof.__file__).parent
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.py"))
    digests = digest_of_names(folder, dict.fromkeys(names, BLAKE3))
    return {name: hexadecimal_of(each.digest)[:_DIGITS] for name, each in digests.items()}
