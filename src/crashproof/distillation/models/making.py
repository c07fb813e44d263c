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
from crashproof.distillation.models.deferred.draws import RecordedDraws
from crashproof.distillation.models.deferred.reading import read_without_weights
from crashproof.distillation.models.deferred.tensor import CannotDefer
from crashproof.distillation.models.deferred.weights import DeferredWeights
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
        self._draws = RecordedDraws()

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
            self.weights.adopt(folder, model, is_proven=True)
            return model
        require_whole(folder, found)
        self.weights.adopt(folder, model, is_proven=False)
        return model

    def drawing(self) -> AbstractContextManager[object]:
        """See `ModelMaker.drawing`."""
        return self._draws

    def complete(self, make: Callable[[], ModuleT]) -> ModuleT:
        """See `ModelMaker.complete`."""
        num_unproven = len(self.weights.unproven)
        try:
            module = make()
            self.weights.defer(module, self._draws)
        except CannotDefer as reason:
            log.warning(
                "New weights cannot be drawn in parts (%s), so each process draws all of them before it keeps its "
                "shard.",
                reason,
            )
            del self.weights.unproven[num_unproven:]
            self._draws = RecordedDraws(defers_all=False)
            module = make()
            self.weights.defer(module, self._draws)
        return module
