"""Under `train.strategy: fsdp` no process holds a model whole, whatever its folder, and nothing changes by that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from crashproof import RunReader
from tests.model_folders import SIZES, VOCAB_SIZE, WITHOUT_A_TEACHER, edit_json, save, tiny_tokenizer

PROGRAM = Path(__file__).with_name("sharded_models_program.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
SETTINGS = ["train.steps=3", "train.batch_size=6", "train.strategy=fsdp", "train.device=cpu", "train.warmup_steps=1"]
NOT_OF_THE_MODEL = {"crashproof.json"}
"""Names the session."""

Make = Callable[[PreTrainedTokenizerFast, Path], Path]


def of_config(config: Any, **options: Any) -> Make:
    def make(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
        torch.manual_seed(len(folder.name))
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        return save(model, tokenizer, folder, **options)

    return make


def halved_in_shards(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16)  # type: ignore[arg-type]
    save(model, tokenizer, folder, max_shard_size="20kB")
    edit_json(folder / "generation_config.json", temperature=0.7, do_sample=True)
    return folder


def pickled(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    of_config(LlamaConfig(**SIZES))(tokenizer, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def pickled_long_ago(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """In the format before PyTorch 1.6, which cannot be mapped into memory."""
    of_config(LlamaConfig(**SIZES))(tokenizer, folder)
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()
    return folder


def nested(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=SIZES | {"head_dim": 8, "sliding_window": 16},
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    return save(Gemma3ForConditionalGeneration(config), tokenizer, folder)


def both_of_a_tie(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Tied by its config, and with a head of its own in the file: then the head counts."""
    config = LlamaConfig(**SIZES)
    of_config(config)(tokenizer, folder)
    edit_json(folder / "config.json", tie_word_embeddings=True)
    return folder


Case = tuple[Make | None, Make | None, list[str]]
"""Student, teacher and overrides; without a folder, a student is new."""
LLAMA, GPT2 = LlamaConfig(**SIZES), GPT2Config(vocab_size=VOCAB_SIZE, n_embd=16, n_layer=2, n_head=2, n_positions=128)
EXPERTS = MixtralConfig(**SIZES, num_local_experts=3, output_router_logits=True)
SOFT_CAP = Gemma2Config(**SIZES, head_dim=8)
OLD_DECODER = BertConfig(**SIZES, is_decoder=True)
"""Counts the embedding, whose weight its head shares, among the layers that must not be split."""
TIED = LlamaConfig(**SIZES, tie_word_embeddings=True)

FAST: dict[str, Case] = {
    "halves in several files, and states of layers": (
        halved_in_shards,
        of_config(TIED),
        # A rank has more rows than another, so it calls the teacher's head more often.
        ["loss.intermediate=0.1", "loss.chunk_tokens=2", "data.held_out=0.3", "progress.eval_every=3"],
    ),
    "adapters, and a pickled teacher": (of_config(GPT2), pickled, ["student.lora={rank: 2}", "loss.intermediate=0"]),
    "a new student": (None, of_config(EXPERTS), ["student.d_model=24", "student.num_heads=2", "student.d_ff=40"]),
}
LONG: dict[str, Case] = {
    "experts, and a soft cap": (of_config(EXPERTS), of_config(SOFT_CAP), ["loss.intermediate=0"]),
    "a text model inside another": (nested, None, [*WITHOUT_A_TEACHER]),
    "adapters in a text model inside another": (nested, None, [*WITHOUT_A_TEACHER, "student.lora={rank: 2}"]),
    "a head beside a tie": (both_of_a_tie, of_config(LLAMA), ["loss.intermediate=0"]),
    "a student of tied weights, in half": (
        of_config(TIED),
        None,
        [*WITHOUT_A_TEACHER, "student.save_dtype=bfloat16"],
    ),
    "new adapters in a new student": (None, of_config(LLAMA), ["student.lora={rank: 2, dropout: 0.1}"]),
    "adapters in an embedding": (
        of_config(LLAMA),
        None,
        [*WITHOUT_A_TEACHER, "student.lora={rank: 2, target_modules: [embed_tokens, q_proj]}"],
    ),
    "recomputed activations": (of_config(LLAMA), pickled, ["train.checkpoints_activations=true"]),
    "embeddings among the layers": (of_config(OLD_DECODER), of_config(OLD_DECODER), ["loss.intermediate=0.1"]),
    "calls of tools": (
        None,
        None,
        [
            *(
                "data.path=null",
                "data.samples=18",
                "data.max_length=512",
                "data.held_out=0.2",
                "progress.eval_every=3",
            ),
            *("student.d_model=16", "student.num_heads=2", "loss.chunk_tokens=8", "teacher.steps=2"),
            *("teacher.d_model=16", "teacher.num_heads=2", "teacher.num_layers=2"),
        ],
    ),
    "pickled long ago": (pickled_long_ago, of_config(LLAMA), ["loss.intermediate=0"]),
}


class Trained:
    """Both ways of some cases, and what each rank held."""

    def __init__(self, folder: Path, cases: dict[str, Case], ranks: int) -> None:
        self.folder = folder
        self.ranks = ranks
        tokenizer = tiny_tokenizer(folder / "tokenizer")
        data = folder / "data.jsonl"
        words = ("four", "five and a half", "two", "a hundred and one", "nothing", "six or seven")
        data.write_text(
            "".join(f'{{"prompt": "What is two and two?", "teacher_text": " {word}"}}\n' for word in words * 3)
        )
        content = {name: self._case(case, tokenizer, folder / name, data) for name, case in cases.items()}
        for name in content:
            content[name]["recipe"] = "process" if name == "calls of tools" else "kd"
        task = folder / "task.json"
        task.write_text(json.dumps({"folder": str(folder), "cases": content}))
        self.said = self._run(task)
        self.facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())

    def _case(self, case: Case, tokenizer: PreTrainedTokenizerFast, folder: Path, data: Path) -> dict[str, Any]:
        student, teacher, overrides = case
        words = [f"data.path={data}", "data.max_length=32", *SETTINGS]
        if student is not None:
            words.append(f"student.path={student(tokenizer, folder / 'student')}")
        if teacher is not None:
            words += ["teacher.kind=local", f"teacher.path={teacher(tokenizer, folder / 'teacher')}"]
        return {"overrides": [*words, *overrides]}

    def _run(self, task: Path) -> str:
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(self.ranks)]
        start += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        ended = subprocess.run(
            [*start, str(PROGRAM), str(task)],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert 0 == ended.returncode, ended.stderr
        return ended.stderr

    def student(self, name: str, way: str) -> Path:
        return next((self.folder / name / way).glob("student_3"))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("two"), FAST, 2)


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Which share nothing evenly."""
    return Trained(tmp_path_factory.mktemp("three"), FAST | LONG, 3)


def assert_same_files(one: Path, other: Path) -> None:
    names = [sorted(str(each.relative_to(way)) for each in way.rglob("*") if each.is_file()) for way in (one, other)]
    assert names[0] == names[1]
    different = [name for name in names[0] if (one / name).read_bytes() != (other / name).read_bytes()]
    assert [] == [name for name in different if name not in NOT_OF_THE_MODEL]


def assert_trained_alike(trained: Trained, name: str) -> None:
    """The same losses and files, as they are with whole models."""
    histories = [
        [line.loss for line in RunReader.open(trained.folder / name / way).history()] for way in ("whole", "sharded")
    ]
    assert 3 == len(histories[0])
    assert histories[0] == histories[1]
    assert_same_files(trained.student(name, "whole"), trained.student(name, "sharded"))
    whole, sharded = (trained.facts[name][way][0]["examined"] for way in ("whole", "sharded"))
    assert whole == sharded


@pytest.mark.parametrize("name", FAST)
def test_a_run_with_models_sharded_at_loading_is_that_with_whole_ones(two_ranks: Trained, name: str) -> None:
    assert_trained_alike(two_ranks, name)


@pytest.mark.long
@pytest.mark.parametrize("name", [*FAST, *LONG])
def test_so_it_is_where_nothing_can_be_shared_evenly(three_ranks: Trained, name: str) -> None:
    assert_trained_alike(three_ranks, name)


@pytest.mark.parametrize("name", FAST)
def test_no_process_ever_holds_more_than_its_shard(two_ranks: Trained, name: str) -> None:
    ranks = two_ranks.facts[name]["sharded"]

    assert [0, 0] == [each["held_before"] for each in ranks]
    assert ranks[0]["in_all"] == sum(each["held"] for each in ranks)
    # Of an odd number of rows, the first has one more.
    assert max(each["held"] for each in ranks) < 0.6 * ranks[0]["in_all"]
    # Of no file, a byte is read twice.
    assert ranks[0]["stored"] == sum(each["read"] for each in ranks)
    assert {1.0} == {each["sharded_layers_of_the_teacher"] for each in ranks}


@pytest.mark.long
def test_what_can_only_be_read_whole_is_said_once_with_a_way_out(three_ranks: Trained) -> None:
    said = [line for line in three_ranks.said.splitlines() if "cannot be read in parts" in line]

    # By each rank, of which a trainer silences all but the main one.
    assert 3 == len([line for line in said if "pickled long ago/student" in line and "save_pretrained" in line])
    assert 3 == len(said)
    assert "file by file" not in three_ranks.said
