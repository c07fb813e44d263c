"""The machine and the versions of a device check.

`python -m benchmarks.device.machine` prints them as JSON: in a process of its own, so that nobody who starts others
has opened the device.
"""

from __future__ import annotations

import json
import os
import platform

import torch
from torch.cuda import nccl

from benchmarks.machine import commit, cpu_model, version_of

_PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "msgspec", "numpy")


def facts() -> dict[str, str]:
    """What a figure belongs to, by name."""
    return {
        "device": _device(),
        "CPU": f"{cpu_model()}, {os.cpu_count()} cores",
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        **{package: version_of(package) for package in _PACKAGES},
        "commit": commit(),
    }


def _device() -> str:
    if not torch.cuda.is_available():
        return "none"
    properties = torch.cuda.get_device_properties(0)
    nccl_version = ".".join(map(str, nccl.version())) if torch.distributed.is_nccl_available() else "none"
    return (
        f"{properties.name}, {properties.total_memory / (1 << 30):.0f} GiB, CUDA {torch.version.cuda}, "
        f"cuDNN {torch.backends.cudnn.version()}, NCCL {nccl_version}"
    )


if __name__ == "__main__":
    print(json.dumps(facts()))
