"""Trains each of some cases twice on the same ranks, with models that are sharded at loading and with whole ones.

Its argument is a JSON file: a folder for all output, and the overrides of each case by name. Rank 0 writes down what
each rank held and read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from crashproof.distillation.models.causal_lm import load_model
from crashproof.distillation.models.deferred.weights import DeferredWeights
from crashproof.distillation.models.making import DeferredModels, ModelMaker
from crashproof.distillation.recipes.registry import TASKS
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.training.agreement.inputs import InputDigests
from crashproof.distillation.training.lessons import read_lessons
from crashproof.distillation.training.preparation import Prepared, prepare
from crashproof.distillation.training.training_run import TrainingRun
from crashproof.pytorch.device import choose_device, compute_deterministically
from crashproof.pytorch.interrupts import Interrupts
from crashproof.pytorch.ranks import Ranks, join_ranks

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Facts = dict[str, Any]


class WholeAtFirst:
    """Each process reads and draws everything, and only then gives up what is not in its shard."""

    def __init__(self) -> None:
        self.weights = DeferredWeights()
        self._models: list[PreTrainedModel] = []

    def read(self, folder: Path) -> PreTrainedModel:
        model = load_model(folder)
        self._models.append(model)
        return model

    def drawing(self) -> AbstractContextManager[object]:
        return nullcontext()

    def complete(self, make: Callable[[], ModuleT]) -> ModuleT:
        module = make()
        for each in (module, *self._models):
            self.weights.defer(each)
        return module


def prepared_by_turns(task: Any, config: Any, cache: Path, ranks: Ranks, models: ModelMaker) -> Prepared:
    lessons = read_lessons(task, config)
    if ranks.is_main:
        made = prepare(task, config, lessons, cache=cache, interrupts=Interrupts(), models=models)
    ranks.broadcast(None, "waiting for the cache")
    if not ranks.is_main:
        made = prepare(task, config, lessons, cache=cache, interrupts=Interrupts(), fills_cache=False, models=models)
    ranks.broadcast(None, "waiting for all")
    return made


def train(recipe: str, overrides: list[str], folder: Path, ranks: Ranks, models: ModelMaker) -> Facts:
    task = TASKS[recipe]
    config = task.complete(load_config(task.config, [], overrides))
    made = prepared_by_turns(task, config, folder / "cache", ranks, models)
    facts: Facts = {"held_before": sum(map(held_numbers, models_of(made)))}
    device = choose_device("cpu")
    run = TrainingRun(
        task,
        config,
        made,
        InputDigests.read(config),
        folder,
        device=device,
        ranks=ranks,
        interrupts=Interrupts(),
        resume="auto",
    )
    facts["held"] = sum(map(held_numbers, models_of(made)))
    facts["in_all"] = sum(each.numel() for model in models_of(made) for each in model.parameters())
    facts["examined"] = [split.is_split for split in (made.recipe.split, made.recipe.teacher) if split is not None]
    assert made.weights is not None
    facts["stored"], facts["read"] = made.weights.read.counts()
    assert run.train()
    run.save_student()
    if made.teacher is not None:
        layers = [each for name, each in made.teacher.named_parameters() if ".layer" in name or ".h." in name]
        facts["sharded_layers_of_the_teacher"] = sum(isinstance(each, DTensor) for each in layers) / len(layers)
    return facts


def models_of(made: Prepared) -> list[PreTrainedModel]:
    return [made.recipe.student, *([] if made.teacher is None else [made.teacher])]


def held_numbers(model: PreTrainedModel) -> int:
    """Numbers of the weights that lie in this process's memory."""
    local = [each.to_local() if isinstance(each, DTensor) else each for each in model.parameters()]
    return sum(each.numel() for each in local if not each.is_meta)


def main(task_file: Path) -> None:
    content = json.loads(task_file.read_text())
    compute_deterministically()
    torch.set_num_threads(1)
    facts: dict[str, Any] = {}
    with join_ranks(device_type="cpu", limit_seconds=60) as ranks:
        for name, case in content["cases"].items():
            for way, models in (("whole", WholeAtFirst()), ("sharded", DeferredModels())):
                folder = Path(content["folder"]) / name / way
                own = train(case["recipe"], case["overrides"], folder, ranks, models)
                facts.setdefault(name, {})[way] = ranks.all_gather(own, "comparing")
        if ranks.is_main:
            Path(content["folder"], "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
