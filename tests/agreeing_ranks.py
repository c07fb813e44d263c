"""Two ranks of the trainer, of which one is given something else, and what both must say."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed import TCPStore

from crashproof.distillation.models.causal_lm import new_model
from crashproof.distillation.settings.models import ModelShape
from crashproof.distillation.text.tokenizer import train_tokenizer

PROGRAM = Path(__file__).with_name("crash") / "agreement_program.py"
LIMIT_SECONDS = 60
SETTINGS = [
    *("data.max_length=24", "data.on_too_long=truncate", "tokenizer.vocab_size=300", "teacher.steps=3"),
    *("teacher.d_model=16", "teacher.num_heads=2", "teacher.num_layers=2", "student.d_model=16"),
    *("student.num_heads=2", "train.batch_size=4", "train.warmup_steps=2", "train.steps=4"),
    f"train.limit_seconds={LIMIT_SECONDS}",
    *("progress.checkpoint_interval=2", "train.device=cpu"),
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


@dataclass(frozen=True, kw_only=True)
class Given:
    """What one rank is given."""

    arguments: list[str] = field(default_factory=list)
    """Behind those that both ranks have."""
    environment: dict[str, str] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)
    """Before Python's own path."""
    recipe: str = "kd"
    astray: str = ""
    """What it does otherwise from the third step on."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Two ranks, and what both must say."""

    name: str
    says: list[str]
    """Parts of the error of both ranks."""
    both: list[str] = field(default_factory=list)
    first: Given = Given()
    second: Given = Given()
    code: int = 2
    says_of_its_own: list[str] = field(default_factory=list)
    """Parts of the error of the rank that failed, where that is another one."""
    folder: str = ""
    """Of the run; by default one that no other case has."""
    may_train: bool = False


Results = list[tuple[Case, list[dict[str, Any]]]]
"""Each case with what its two ranks said, and how they ended."""


class Files:
    """Data and models, and altered copies of them on another host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = _lines()
        self.data = self.write("data.jsonl", self.lines)
        self.student = self._model("student", seed=0)
        self.teacher = self._model("teacher", seed=1)

    def write(self, name: str, lines: list[str]) -> Path:
        path = self.folder / name
        path.write_text("".join(lines))
        return path

    def copy(self, folder: Path, name: str) -> Path:
        return Path(shutil.copytree(folder, self.folder / name))

    def altered(self, folder: Path, name: str) -> Path:
        """A copy with one weight that differs in its last bit."""
        copied = self.copy(folder, name)
        weights = load_file(copied / "model.safetensors")
        first = sorted(weights)[0]
        weights[first].view(torch.int32).view(-1)[0] ^= 1
        save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
        return copied

    def version(self, name: str) -> str:
        """A folder that makes a library look like another version of itself."""
        info = self.folder / f"other-{name}" / f"{name}-0.0.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")
        return str(info.parent)

    def _model(self, name: str, *, seed: int) -> Path:
        folder = self.folder / name
        tokenizer = train_tokenizer(self.lines, vocab_size=300, folder=self.folder / "tokenizer")
        torch.manual_seed(seed)
        shape = ModelShape(d_model=16, num_layers=2, num_heads=2)
        new_model(shape, tokenizer=tokenizer, max_length=24).save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        return folder


def _lines() -> list[str]:
    chance = random.Random(0)
    words = "killed and started again it goes on as if nothing had happened".split()  # noqa: SIM905
    lines = [{"prompt": f"{number}: ", "teacher_text": " ".join(chance.choices(words, k=8))} for number in range(48)]
    return [json.dumps(line) + "\n" for line in lines]


def run(cases: list[Case], files: Files, *settings: str) -> Results:
    """Each case with what its two ranks said."""
    plan = files.folder / f"cases{len(list(files.folder.glob('cases*')))}.json"
    plan.write_text(json.dumps([_as_json(number, case, files, settings) for number, case in enumerate(cases)]))
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    shared = {
        **ENVIRONMENT,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    started: list[Any] = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(plan)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ended = [(each.communicate(timeout=1500)[1], each.returncode) for each in started]
    assert [0, 0] == [code for _, code in ended], ended
    said = [[json.loads(line) for line in Path(f"{plan}.{rank}").read_text().splitlines()] for rank in range(2)]
    return [(case, [said[0][number], said[1][number]]) for number, case in enumerate(cases)]


def _as_json(number: int, case: Case, files: Files, settings: tuple[str, ...]) -> dict[str, Any]:
    common = [f"data.path={files.data}", *SETTINGS, *settings, *case.both]
    folder = ["--output-dir", str(files.folder / (case.folder or f"run{number}-{'-'.join(settings)}"))]
    ranks = [
        {
            "arguments": [*common, *given.arguments, *folder],
            "environment": given.environment,
            "path": given.path,
            "recipe": given.recipe,
            "astray": given.astray,
        }
        for given in (case.first, case.second)
    ]
    return {"name": case.name, "ranks": ranks}


def problems_with(case: Case, said: list[dict[str, Any]]) -> list[str]:
    """What a rank should have said or done, and has not."""
    problems = [
        f"rank {rank} ended with {each['code']}" for rank, each in enumerate(said) if each["code"] != case.code
    ]
    for rank, each in enumerate(said):
        failed_itself = case.says_of_its_own and all(part in each["said"] for part in case.says_of_its_own)
        is_own = failed_itself and f"Rank {1 - rank} failed" not in each["said"]
        wanted = case.says_of_its_own if is_own else case.says
        problems += [f"rank {rank} does not say {part!r}" for part in wanted if part not in each["said"]]
        problems += [f"rank {rank} trained"] if "kd: step 1 of" in each["said"] and not case.may_train else []
        problems += [f"rank {rank} waited {each['seconds']:.0f} s"] if each["seconds"] > LIMIT_SECONDS else []
    return [f"{case.name}: {each}" for each in problems]


def show(results: Results) -> None:
    for case, said in results:
        lines = [line for each in said if each["code"] for line in each["said"].splitlines()]
        errors = dict.fromkeys(line for line in lines if re.match("(kd|process): (?!step )", line))
        print(f"{case.name} | {max(each['seconds'] for each in said):.1f} s | {' || '.join(errors)}")
