"""Any layout that the HF Trainer itself resumes is a checkpoint; one that lacks a part is torn."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign_checkpoints import adam, write_archive, write_hugging_face, write_safetensors, write_state

from crashproof.checkpoints.foreign.inspection import Finding, inspect
from crashproof.checkpoints.foreign.survey import survey
from crashproof.tracking.adopt import adopt_checkpoints


def found(run_dir: Path) -> Finding:
    (candidate,) = survey(run_dir).candidates
    assert 500 == candidate.step
    return inspect(candidate)


def without_weights(run_dir: Path) -> Path:
    folder = write_hugging_face(run_dir, 500)
    (folder / "model.safetensors").unlink()
    return folder


def write_adapter(folder: Path, suffix: str = ".safetensors") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if suffix == ".bin":
        write_archive(folder / "adapter_model.bin")
    else:
        write_safetensors(folder / "adapter_model.safetensors")


def the_default_adapter(run_dir: Path) -> None:
    write_adapter(without_weights(run_dir))


def an_adapter_as_a_pickle(run_dir: Path) -> None:
    write_adapter(without_weights(run_dir), ".bin")


def a_named_adapter(run_dir: Path) -> None:
    folder = without_weights(run_dir)
    write_adapter(folder / "mine")
    (folder / "README.md").write_text("a card")


def several_adapters(run_dir: Path) -> None:
    folder = without_weights(run_dir)
    for name in ("first", "second"):
        write_adapter(folder / name)
    write_adapter(folder)


def a_value_head_of_trl(run_dir: Path) -> None:
    folder = without_weights(run_dir)
    write_adapter(folder)
    write_safetensors(folder / "value_head.safetensors")


def the_weights_of_an_average(run_dir: Path) -> None:
    write_safetensors(write_hugging_face(run_dir, 500) / "ema" / "model.safetensors")


def deepspeed(run_dir: Path) -> None:
    folder = without_weights(run_dir)
    (folder / "optimizer.pt").unlink()
    for rank in range(2):
        name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        write_state(folder / "global_step500" / name, {})
    state = {"global_steps": 500, "module": {}, "dp_world_size": 2}
    write_state(folder / "global_step500" / "mp_rank_00_model_states.pt", state)
    (folder / "latest").write_text("global_step500")


def fsdp_in_full(run_dir: Path) -> None:
    folder = without_weights(run_dir)
    (folder / "optimizer.pt").unlink()
    for name in ("pytorch_model_fsdp.bin", "optimizer.bin"):
        write_archive(folder / name)


def the_model_alone(run_dir: Path) -> None:
    folder = write_hugging_face(run_dir, 500)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).unlink()


def an_adapter_alone(run_dir: Path) -> None:
    folder = without_weights(run_dir)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).unlink()
    write_adapter(folder / "mine")


def shards_of_pickles(run_dir: Path) -> None:
    folder = without_weights(run_dir)
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for name in names:
        write_archive(folder / name)
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def many_processes(run_dir: Path) -> None:
    write_hugging_face(run_dir, 500, num_ranks=4)


def mixed_precision(run_dir: Path) -> None:
    write_archive(write_hugging_face(run_dir, 500) / "scaler.pt")


LAYOUTS = [
    *(the_default_adapter, an_adapter_as_a_pickle, a_named_adapter, several_adapters, a_value_head_of_trl),
    *(the_weights_of_an_average, deepspeed, fsdp_in_full, the_model_alone, an_adapter_alone, shards_of_pickles),
    *(many_processes, mixed_precision),
]


@pytest.mark.parametrize("build", LAYOUTS)
def test_a_layout_that_the_trainer_resumes_is_intact(run_dir: Path, build: Callable[[Path], None]) -> None:
    build(run_dir)

    assert None is found(run_dir).problem
    assert [500] == [each.checkpoint_step for each in adopt_checkpoints(run_dir).adopted]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


@pytest.mark.parametrize(
    ("build", "harm", "problem"),
    [
        (
            a_named_adapter,
            lambda folder: (folder / "mine" / "adapter_model.safetensors").unlink(),
            "it has no weights (model.safetensors, pytorch_model.bin or an adapter's)",
        ),
        (
            several_adapters,
            lambda folder: (folder / "second" / "adapter_model.safetensors").unlink(),
            "an adapter has no weights",
        ),
        (
            several_adapters,
            lambda folder: cut(folder / "first" / "adapter_model.safetensors"),
            "first/adapter_model.safetensors: it has",
        ),
        (
            deepspeed,
            lambda folder: (folder / "global_step500" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink(),
            "global_step500: bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt is missing",
        ),
        (deepspeed, lambda folder: shutil.rmtree(folder / "global_step500"), "it has no weights"),
        (
            shards_of_pickles,
            lambda folder: (folder / "pytorch_model-00002-of-00002.bin").unlink(),
            "pytorch_model.bin.index.json: pytorch_model-00002-of-00002.bin is missing",
        ),
        (mixed_precision, lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
        (a_named_adapter, lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
        (fsdp_in_full, lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
        (deepspeed, lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
        (many_processes, lambda folder: (folder / "rng_state_0.pth").unlink(), "rng_state_0.pth is missing"),
        (many_processes, lambda folder: (folder / "trainer_state.json").unlink(), "written last is missing"),
    ],
)
def test_a_layout_with_a_part_missing_is_torn(
    run_dir: Path, build: Callable[[Path], None], harm: Callable[[Path], Any], problem: str
) -> None:
    build(run_dir)
    harm(run_dir / "checkpoint-500")

    assert problem in str(found(run_dir).problem)


def test_sharded_weights_without_the_trainers_state_are_an_unfinished_save(run_dir: Path) -> None:
    folder = run_dir / "checkpoint-500" / "pytorch_model_fsdp_0"
    folder.mkdir(parents=True)
    (folder / ".metadata").write_bytes(b"")
    write_state(run_dir / "checkpoint-500" / "optimizer.pt", adam(500))

    assert found(run_dir).problem is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_lora_run_with_a_named_adapter_resumes_where_it_was(run_dir: Path) -> None:
    for name in ("transformers", "accelerate", "peft"):
        pytest.importorskip(name)
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from crashproof.adapters.transformers import CrashproofCallback

    def trained(max_steps: int, *, has_crashproof: bool) -> tuple[str | None, int]:
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
        lora = LoraConfig(r=2, target_modules=["q_proj"])
        model = get_peft_model(LlamaForCausalLM(config), lora, adapter_name="mine")
        arguments = TrainingArguments(
            output_dir=str(run_dir),
            max_steps=max_steps,
            save_steps=2,
            per_device_train_batch_size=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            lr_scheduler_type="constant",
        )
        ids = torch.tensor([1, 2, 3])
        trainer = Trainer(model, arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 8)
        found = CrashproofCallback(trainer).newest_checkpoint() if has_crashproof else None
        trainer.train(resume_from_checkpoint=found)
        return found, trainer.state.global_step

    trained(2, has_crashproof=False)
    assert (run_dir / "checkpoint-2" / "mine" / "adapter_model.safetensors").exists()
    taken_up, _ = trained(4, has_crashproof=True)
    resumed, step = trained(6, has_crashproof=True)

    assert (str(run_dir / "checkpoint-2"), str(run_dir / "checkpoint-4"), 6) == (taken_up, resumed, step)
