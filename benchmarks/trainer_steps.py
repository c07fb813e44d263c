"""Steps and saves, beside HF Trainer and a bare loop."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.figures import Section, in_unit
from benchmarks.trained_loop import StepTimes, trained_loop
from crashproof import training_progress_context
from crashproof.distillation.data.text_data import TokenizedData
from crashproof.distillation.recipes.kd import KdRecipe
from crashproof.distillation.settings.progress import ProgressConfig
from crashproof.distillation.settings.recipes.kd import KdLossConfig
from crashproof.distillation.settings.train import TrainConfig

__all__ = ["measure"]

_VOCABULARY, _LENGTH, _BATCH = 1024, 64, 4
_STEPS, _SAVE_EVERY, _ROUNDS = 32, 8, 3

Times = list[float]


def measure(work: Path, *, is_full: bool) -> Section:  # `is_full` changes nothing here.
    """The same model, data and optimizer, in turn."""
    ways: dict[str, Callable[[Path], Times]] = {
        "crashproof, saves behind": lambda folder: _ours(folder, saves_behind=True),
        "crashproof, waits for saves": lambda folder: _ours(folder, saves_behind=False),
        "HF Trainer": _hugging_face,
        "bare loop, torch.save": lambda folder: _bare(folder, syncs=False),
        "bare loop, torch.save and fsync": lambda folder: _bare(folder, syncs=True),
    }
    found: dict[str, list[Times]] = {name: [] for name in ways}
    for number in range(_ROUNDS):
        for name, run in ways.items():
            folder = work / f"{number}-{name.replace(' ', '-')}"
            folder.mkdir()
            found[name].append(run(folder))
    return Section(
        title="Steps and saves, beside HF Trainer and a bare loop",
        columns=[
            "",
            "step p50",
            "steps/s without saves",
            "stall of the first save",
            "of later saves",
            "all that a save costs",
        ],
        rows=[_row(name, rounds) for name, rounds in found.items()],
        notes=[
            f"A Llama of {_model().num_parameters() / 1e6:.1f} million weights, {_BATCH} x {_LENGTH} tokens a step, "
            f"cross-entropy, AdamW, fp32; {_ROUNDS} rounds of {_STEPS} steps in turn, saves every {_SAVE_EVERY}. "
            "The stall is what a step with a save takes longer than the median step; all that a save costs is what a "
            "whole round takes longer, over its saves: where they are written behind, later steps share the two "
            "cores with them. crashproof digests and syncs what it writes; HF Trainer and torch.save do neither."
        ],
    )


def _row(name: str, rounds: list[Times]) -> list[str]:
    plain = [seconds for times in rounds for place, seconds in enumerate(times, 1) if place % _SAVE_EVERY]
    saving = [times[_SAVE_EVERY - 1 :: _SAVE_EVERY] for times in rounds]
    step = median(plain)
    whole = median((sum(times) - step * len(times)) / len(saves) for times, saves in zip(rounds, saving, strict=True))
    return [
        name,
        in_unit(step),
        f"{1 / step:.1f}",
        in_unit(max(0.0, median(saves[0] for saves in saving) - step)),
        in_unit(max(0.0, median(seconds for saves in saving for seconds in saves[1:]) - step)),
        in_unit(max(0.0, whole)),
    ]


def _model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=_VOCABULARY,
            hidden_size=320,
            intermediate_size=848,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=_LENGTH,
            tie_word_embeddings=True,
        )
    )


def _tokens() -> torch.Tensor:
    return torch.randint(3, _VOCABULARY, (256, _LENGTH), generator=torch.Generator().manual_seed(0))


def _between(moments: list[float]) -> Times:
    """From the second step on: the first warms up. A save after a step is in the time of the next one."""
    return [later - earlier for earlier, later in pairwise(moments)][1:]


def _ours(folder: Path, *, saves_behind: bool) -> Times:
    tokens = _tokens()
    starts = torch.arange(0, tokens.numel() + 1, _LENGTH)
    data = TokenizedData(input_ids=tokens.flatten(), labels=tokens.flatten(), starts=starts, pad_id=0)
    recipe = KdRecipe(_model(), None, KdLossConfig(kd=0, ce=1, intermediate=0), vocab_size=_VOCABULARY)
    train = TrainConfig(steps=_STEPS, batch_size=_BATCH, device="cpu")
    progress = ProgressConfig(checkpoint_interval=_SAVE_EVERY, saves_behind=saves_behind)
    times = StepTimes()
    with (
        training_progress_context({}, folder, _STEPS) as context,
        trained_loop(recipe, data, train, progress, context, folder) as loop,
    ):
        loop.run(times)
    return _between(times.moments)


class _Samples(Dataset[dict[str, torch.Tensor]]):
    def __init__(self) -> None:
        self._tokens = _tokens()

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._tokens[index], "labels": self._tokens[index]}


class _Watch(TrainerCallback):
    def __init__(self) -> None:
        self.moments = [perf_counter()]

    def on_step_end(self, *arguments: Any, **more: Any) -> None:
        self.moments.append(perf_counter())


def _hugging_face(folder: Path) -> Times:
    watch = _Watch()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=_STEPS,
        per_device_train_batch_size=_BATCH,
        learning_rate=2e-3,
        save_steps=_SAVE_EVERY,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    Trainer(model=_model(), args=arguments, train_dataset=_Samples(), callbacks=[watch]).train()
    return _between(watch.moments)


def _bare(folder: Path, *, syncs: bool) -> Times:
    model, tokens = _model(), _tokens()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    moments = [perf_counter()]
    for step in range(1, _STEPS + 1):
        batch = tokens[torch.arange(step * _BATCH, (step + 1) * _BATCH) % len(tokens)]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        moments.append(perf_counter())
        if step % _SAVE_EVERY == 0:
            path = folder / f"checkpoint_{step}.pt"
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
            if syncs:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
    return _between(moments)
