"""What each of two processes holds of a student and a teacher under FSDP2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.figures import Section
from crashproof.distillation.models.causal_lm import load_model
from crashproof.distillation.models.deferred.weights import DeferredWeights
from crashproof.distillation.models.making import DeferredModels, ModelMaker
from crashproof.distillation.recipes.kd import KD
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.distillation.text.tokenizer import train_tokenizer
from crashproof.distillation.training.agreement.inputs import InputDigests
from crashproof.distillation.training.lessons import read_lessons
from crashproof.distillation.training.preparation import prepare
from crashproof.distillation.training.training_run import TrainingRun
from crashproof.pytorch.device import choose_device
from crashproof.pytorch.interrupts import Interrupts
from crashproof.pytorch.ranks import join_ranks

__all__ = ["measure"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_WIDTH, _LAYERS, _VOCABULARY = 1024, 8, 4096
_SAMPLE_SECONDS = 0.003
_STAGES = ("read", "sharded", "trained", "written")
_WAYS = {"at loading": "sharded at loading", "whole": "whole at first"}


def measure(work: Path, *, is_full: bool) -> Section:  # `is_full` changes nothing here.
    """Peak anonymous memory of a process in each stage of a run of one step, in two ways."""
    tokenizer = train_tokenizer(["What is two and two? Four. " * 9], vocab_size=300, folder=work / "tokenizer")
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=_WIDTH,
        intermediate_size=2816,
        num_hidden_layers=_LAYERS,
        num_attention_heads=8,
        max_position_embeddings=128,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)  # type: ignore[arg-type]  # transformers leaves it so.
    num_bytes = 4 * model.num_parameters()
    model.save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    (work / "data.jsonl").write_text('{"prompt": "What is two and two?", "teacher_text": " four"}\n' * 4)
    rows = [[title, *(f"{each:,.0f} MB" for each in _run(way, work))] for way, title in _WAYS.items()]
    return Section(
        title="Memory of sharded models",
        columns=["student and teacher", "models read", "sharded", "one step, one save", "student written"],
        rows=rows,
        notes=[
            f"Student and teacher of {num_bytes / 1e6:,.0f} MB each in fp32, in bfloat16 on the disk; FSDP2 on two "
            "processes, on the CPU, with AdamW. The most anonymous memory of the main process in each stage, above "
            "what it had once everything was imported. A step holds the student's shard, its gradients, two moments, "
            "and a copy of these for the save, beside the teacher's shard."
        ],
    )


def _run(way: str, work: Path) -> list[float]:
    """MB of the main process in each stage."""
    # Or the allocator keeps what has been given back.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    start += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "benchmarks.sharded_memory"]
    subprocess.run([*start, way, str(work)], check=True, capture_output=True, env=environment)
    found: dict[str, float] = json.loads((work / f"{way}.json").read_text())
    return [found[stage] for stage in _STAGES]


class _WholeModels:
    """Each process reads all of a model, and then gives up what is not in its shard."""

    def __init__(self) -> None:
        self.weights = DeferredWeights()
        self._models: list[PreTrainedModel] = []

    def read(self, folder: Path) -> PreTrainedModel:
        self._models.append(load_model(folder))
        return self._models[-1]

    def drawing(self) -> AbstractContextManager[object]:
        return nullcontext()

    def complete(self, make: Callable[[], ModuleT]) -> ModuleT:
        module = make()
        for each in (module, *self._models):
            self.weights.defer(each)
        self._models.clear()
        return module


class _Peak:
    """The most anonymous memory since it was asked last."""

    def __init__(self) -> None:
        self._before = self._most = _anonymous_mb()
        threading.Thread(target=self._watch, daemon=True).start()

    def take(self) -> float:
        most, self._most = max(self._most, _anonymous_mb()), 0.0
        return most - self._before

    def _watch(self) -> None:
        while True:
            self._most = max(self._most, _anonymous_mb())
            time.sleep(_SAMPLE_SECONDS)


def _anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e6


def _train(way: str, work: Path) -> None:
    model, out = work / "model", work / way
    words = [
        f"data.path={work / 'data.jsonl'}",
        f"student.path={model}",
        "teacher.kind=local",
        f"teacher.path={model}",
    ]
    words += [
        "loss.intermediate=0",
        "data.max_length=128",
        "train.strategy=fsdp",
        "train.steps=1",
        "train.batch_size=2",
    ]
    config = load_config(KdConfig, [], words)
    models: ModelMaker = _WholeModels() if way == "whole" else DeferredModels()
    found: dict[str, float] = {}
    with join_ranks(device_type="cpu", limit_seconds=300) as ranks:
        peak = _Peak()
        made = prepare(
            KD,
            config,
            read_lessons(KD, config),
            cache=out / f"cache{ranks.rank}",
            interrupts=Interrupts(),
            models=models,
        )
        found["read"] = peak.take()
        device = choose_device("cpu")
        run = TrainingRun(
            KD,
            config,
            made,
            InputDigests.read(config),
            out,
            device=device,
            ranks=ranks,
            interrupts=Interrupts(),
            resume="auto",
        )
        found["sharded"] = peak.take()
        run.train()
        found["trained"] = peak.take()
        run.save_student()
        found["written"] = peak.take()
        if ranks.is_main:
            (work / f"{way}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _train(sys.argv[1], Path(sys.argv[2]))
