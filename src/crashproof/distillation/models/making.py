"""Make models at once, or leave their weights for later."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol, TypeVar

from torch import nn
from transformers import PreTrainedModel

from crashproof.distillation.models.causal_lm import load_model, require_whole, without_report
from crashproof.distillation.models.deferred.draws import DrawingLater
from crashproof.distillation.models.deferred.reading import read_without_weights
from crashproof.distillation.models.deferred.tensor import CannotDefer
from crashproof.distillation.models.deferred.weights import DeferredWeights, hold_weights
from crashproof.distillation.models.model_folder import ModelFolder

__all__ = ["WHOLE_MODELS", "DeferredModels", "ModelMaker"]

log = logging.getLogger("crashproof")

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class ModelMaker(Protocol):
    """How models come into memory."""

    @property
    def weights(self) -> DeferredWeights | None:
        """What is not in memory yet; None where everything is."""
        ...

    def read(self, folder: Path) -> PreTrainedModel:
        """Read the causal language model of a local `transformers` folder, in fp32; raises like `load_model`."""
        ...

    def drawing(self) -> AbstractContextManager[object]:
        """A context in which new weights are drawn."""
        ...

    def complete(self, make: Callable[[], ModuleT]) -> ModuleT:
        """Make the module that is trained; `make` seeds, reads and draws, and may be called again."""
        ...


class _WholeModels:
    """Models with all their weights in memory."""

    weights: DeferredWeights | None = None

    def read(self, folder: Path) -> PreTrainedModel:
        """See `ModelMaker.read`."""
        return load_model(folder)

    def drawing(self) -> AbstractContextManager[object]:
        """A null context."""
        return nullcontext()

    def complete(self, make: Callable[[], ModuleT]) -> ModuleT:
        """See `ModelMaker.complete`."""
        return make()


WHOLE_MODELS: ModelMaker = _WholeModels()


class DeferredModels:
    """Models without memory; each process fills its shard of them later, and none ever holds one whole."""

    def __init__(self) -> None:
        self.weights = DeferredWeights()
        self._read: list[PreTrainedModel] = []
        self._draws_later = True

    def read(self, folder: Path) -> PreTrainedModel:
        """See `ModelMaker.read`; that its positions see nothing behind them is left to be shown."""
        content = ModelFolder.read(folder)
        try:
            with without_report():
                model, found = read_without_weights(content, self.weights.read)
        except CannotDefer as reason:
            log.warning(
                "%s: its weights cannot be read in parts (%s), so each process reads all of them before it keeps its "
                "shard. Save the folder again with save_pretrained.",
                folder,
                reason,
            )
            model = load_model(folder)
            hold_weights(model)
        else:
            require_whole(folder, found)
            self.weights.unproven.append((folder, model))
        self._read.append(model)
        return model

    def drawing(self) -> AbstractContextManager[object]:
        """See `ModelMaker.drawing`."""
        return DrawingLater() if self._draws_later else nullcontext()  # type: ignore[no-untyped-call]

    def complete(self, make: Callable[[], ModuleT]) -> ModuleT:
        """See `ModelMaker.complete`."""
        num_read, num_unproven = len(self._read), len(self.weights.unproven)
        try:
            return self._deferred(make())
        except (CannotDefer, RuntimeError) as reason:  # The second is PyTorch's, for a tensor without memory.
            log.warning(
                "New weights cannot be drawn in parts (%s), so each process draws all of them before it keeps its "
                "shard.",
                reason,
            )
        self._draws_later = False
        del self._read[num_read:], self.weights.unproven[num_unproven:]
        return self._deferred(make())

    def _deferred(self, module: ModuleT) -> ModuleT:
        self.weights.defer(module)
        for each in self._read:
            self.weights.defer(each)
        self._read.clear()
        return module
