"""What makes one rank of a test slow; `SLOW_RANK` says which."""

from __future__ import annotations

import os
import time
from typing import Any

from torch.nn.modules.module import register_module_forward_hook

from crashproof.distillation.data.text_data import TokenizedData

SECONDS = 0.3


def compute_slowly() -> None:
    """The forward pass of each layer takes long, as on a device that is too hot."""
    if _is_slow():
        register_module_forward_hook(_sleep_after_layer)


def read_slowly() -> None:
    """Each batch takes long, as from a disk that is busy."""
    if _is_slow():
        make_batch = TokenizedData.batch

        def batch(self: TokenizedData, indices: list[int]) -> Any:
            time.sleep(SECONDS)
            return make_batch(self, indices)

        TokenizedData.batch = batch  # type: ignore[method-assign]


def _is_slow() -> bool:
    return os.environ["RANK"] == os.environ["SLOW_RANK"]


def _sleep_after_layer(module: Any, *_: Any) -> None:
    if type(module).__name__.endswith("DecoderLayer"):
        time.sleep(SECONDS)
