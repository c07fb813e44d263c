from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.command import main
from crashproof.distillation.models.causal_lm import save_model
from crashproof.distillation.models.lora import add_adapters
from crashproof.distillation.models.split_model import SplitModel
from crashproof.distillation.settings.models import LoraOptions
from crashproof.errors import ConfigError

IDS = torch.arange(12).view(2, 6)
SMALL = [
    *(
        "data.max_length=24",
        "data.on_too_long=truncate",
        "tokenizer.vocab_size=300",
        "teacher.steps=2",
        "teacher.d_model=16",
    ),
    *("teacher.num_heads=2", "teacher.num_layers=1", "student.d_model=16", "student.num_heads=2"),
    *("student.num_layers=1", "train.batch_size=2", "train.warmup_steps=1", "progress.checkpoint_interval=2"),
    *("train.device=cpu", "loss.intermediate=0"),
]


@pytest.fixture
def adapted(make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """With adapters that say something: new ones add nothing."""
    model = add_adapters(make_model(0), LoraOptions(rank=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return model


def train(output_dir: Path, *overrides: str, steps: int = 4) -> None:
    code = main("kd", [*SMALL, *overrides, f"train.steps={steps}", "--output-dir", str(output_dir)])
    assert code == 0


def test_the_adapters_alone_are_trained(make_model: Callable[..., PreTrainedModel]) -> None:
    model = add_adapters(make_model(0), LoraOptions(rank=2, target_modules=("q_proj",)))

    trained = [name for name, each in model.named_parameters() if each.requires_grad]

    assert trained
    assert [] == [name for name in trained if "q_proj.lora_" not in name]


def test_an_unknown_layer_is_an_error(make_model: Callable[..., PreTrainedModel]) -> None:
    with pytest.raises(
        ConfigError, match=r"student.lora.target_modules \['nowhere'\] fit no layer of LlamaForCausalLM"
    ):
        add_adapters(make_model(0), LoraOptions(target_modules=("nowhere",)))


def test_logits_a_few_rows_at_a_time_are_those_of_the_adapted_model(adapted: PreTrainedModel) -> None:
    split = SplitModel(adapted)

    logits = split.logits(split.hidden(IDS).last.flatten(0, 1))

    assert split.is_split
    torch.testing.assert_close(logits.view(2, 6, -1), adapted(input_ids=IDS).logits)


def test_the_folder_is_a_plain_model_and_holds_the_adapters_too(
    adapted: PreTrainedModel,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    expected = adapted(input_ids=IDS).logits.detach()

    save_model(adapted, tokenizer, tmp_path / "student", origin={"step": 1})

    plain = AutoModelForCausalLM.from_pretrained(str(tmp_path / "student"))
    torch.testing.assert_close(plain(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)
    # peft calls a deprecated property of transformers.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    again: Any = PeftModel.from_pretrained(make_model(0), str(tmp_path / "student" / "adapter"))
    torch.testing.assert_close(again(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_run_with_dropout_resumes_exactly_and_its_checkpoints_hold_adapters_alone(
    tmp_path: Path,
) -> None:
    lora = ("student.lora.rank=2", "student.lora.dropout=0.2", "train.schedule_steps=4")
    train(tmp_path / "whole", *lora)

    train(tmp_path / "broken", *lora, steps=2)
    train(tmp_path / "broken", *lora)

    whole, broken = (
        torch.load(tmp_path / name / "checkpoint_4.pt", weights_only=True)["tensors"] for name in ("whole", "broken")
    )
    assert whole.keys() == broken.keys()
    assert [] == [name for name in whole if not torch.equal(whole[name], broken[name])]
    assert [] == [name for name in whole if "lora_" not in name]


@pytest.mark.parametrize(
    "option", ["train.checkpoints_activations=true", "train.precision=bfloat16"], ids=["recomputed", "bfloat16"]
)
def test_other_ways_to_compute_resume_exactly_too(tmp_path: Path, option: str) -> None:
    train(tmp_path / "whole", option)

    train(tmp_path / "broken", option, "train.schedule_steps=4", steps=2)
    train(tmp_path / "broken", option, "train.schedule_steps=4")

    whole, broken = (
        torch.load(tmp_path / name / "checkpoint_4.pt", weights_only=True)["tensors"] for name in ("whole", "broken")
    )
    assert [] == [name for name in whole if not torch.equal(whole[name], broken[name])]
