import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tool_lines import one_call, whole
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.data.tool_data import ToolData
from crashproof.distillation.data.tool_tokens import INTEGRATION, JSON, SELECTION
from crashproof.distillation.losses.tool_calls import allowed_entries
from crashproof.distillation.recipes.process import PROCESS, ProcessRecipe
from crashproof.distillation.recipes.registry import TASKS
from crashproof.distillation.settings.recipes.process import ProcessConfig, ProcessLossConfig
from crashproof.distillation.settings.section import validated
from crashproof.errors import ConfigError, ModelMismatch

MakeModel = Callable[..., PreTrainedModel]
LINES = [whole(), one_call("search_web", {"query": "fox"}), one_call("clock", {})]
ALL = ["json_validity_loss", "tool_selection_loss", "integration_loss", "kd", "ce"]
NAMES = ["json_validity", "tool_selection", "integration", "kd", "ce"]


@pytest.fixture
def data(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> ToolData:
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)))
    config = ProcessConfig.model_validate({"data": {"path": path, "max_length": 2048}})
    return PROCESS.tokenize(PROCESS.load(config), config, tokenizer, tmp_path / "cache")


def recipe(
    student: PreTrainedModel, teacher: PreTrainedModel | None, tokenizer: PreTrainedTokenizerFast, **loss: Any
) -> ProcessRecipe:
    return ProcessRecipe(student, teacher, ProcessLossConfig(**loss), vocab_size=len(tokenizer))


def test_the_losses_have_their_documented_names(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: ToolData
) -> None:
    made = recipe(make_model(0), make_model(1), tokenizer)
    sums = made(data.batch([0, 1, 2]))

    assert TASKS["process"] is PROCESS
    assert set(ALL) == set(sums) == set(made.weights)
    assert set(made.counted_by.values()) <= data.counts([0]).keys()
    assert all(value.item() > 0 for value in sums.values())


def test_the_losses_are_those_of_dense_formulas(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: ToolData
) -> None:
    student, batch = make_model(0, vocab_size=300).double(), data.batch([0, 1, 2])
    logits = student(input_ids=batch.input_ids).logits.log_softmax(dim=-1)
    rows = batch.rows
    of_rows, parts = logits.flatten(0, 1)[rows], batch.parts.flatten()[rows]
    targets = batch.targets.flatten()[rows]
    ce = -of_rows.gather(1, targets[:, None]).squeeze(1)
    choices = batch.choices.flatten(0, 1)[rows]
    of_choices = of_rows.gather(1, choices.clamp(min=0)).exp() * (choices >= 0)
    is_allowed = allowed_entries(batch.masks, 300)[batch.mask_of.flatten()[rows]]
    mass = (of_rows.exp() * is_allowed).sum(dim=1)
    expected = {
        "json_validity_loss": -mass.log()[(parts & JSON) != 0].sum(),
        # Beside all text, and among the offered names alone.
        "tool_selection_loss": ((ce + of_choices.sum(dim=1).log() + ce) * ((parts & SELECTION) != 0)).sum(),
        "integration_loss": (ce * ((parts & INTEGRATION) != 0)).sum(),
        "ce": ce.sum(),
    }

    sums = recipe(student, None, tokenizer, kd=0)(batch)

    torch.testing.assert_close(sums, expected)


def test_json_validity_teaches_the_student(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: ToolData
) -> None:
    others = dict.fromkeys(["tool_selection", "integration", "kd", "ce"], 0.0)
    made, batch = recipe(make_model(), None, tokenizer, **others), data.batch([0, 1, 2])
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    losses = []

    for _ in range(5):
        loss = made(batch)["json_validity_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("left_out", NAMES)
def test_a_loss_without_weight_is_not_computed_and_changes_no_other(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: ToolData, left_out: str
) -> None:
    batch = data.batch([0, 1, 2])
    everything = recipe(make_model(0), make_model(1), tokenizer)(batch)

    made = recipe(make_model(0), make_model(1), tokenizer, **{left_out: 0})

    sums = made(batch)
    assert set(ALL) - {left_out, f"{left_out}_loss"} == set(sums) == set(made.weights)
    torch.testing.assert_close(sums, {name: everything[name] for name in sums}, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("alone", NAMES)
def test_each_loss_can_be_the_only_one(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: ToolData, alone: str
) -> None:
    batch = data.batch([0, 1, 2])
    everything = recipe(make_model(0), make_model(1), tokenizer)(batch)

    sums = recipe(make_model(0), make_model(1), tokenizer, **(dict.fromkeys(NAMES, 0.0) | {alone: 1.0}))(batch)

    ((name, value),) = sums.items()
    torch.testing.assert_close(value, everything[name], rtol=1e-5, atol=1e-4)
    value.backward()


def test_a_sample_without_a_final_answer_adds_nothing_to_the_integration(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: ToolData
) -> None:
    made = recipe(make_model(), None, tokenizer, kd=0)

    sums = made(data.batch([1, 2]))

    assert 0.0 == sums["integration_loss"].item()
    assert 0 == data.counts([1, 2])["integration"]
    sum(sums.values()).backward()  # type: ignore[union-attr]
    assert all(each.grad is not None and each.grad.isfinite().all() for each in made.parameters())


def test_a_student_that_is_its_teacher_gets_no_gradient_from_it(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: ToolData
) -> None:
    student, teacher = make_model(0), make_model(0)
    others = dict.fromkeys(["json_validity", "tool_selection", "integration", "ce"], 0.0)

    recipe(student, teacher, tokenizer, **others)(data.batch([0, 1]))["kd"].backward()

    assert all(each.grad is not None and each.grad.abs().max() < 1e-4 for each in student.parameters())
    assert all(each.grad is None for each in teacher.parameters())


def test_no_weight_at_all_is_an_error(make_model: MakeModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match=r"All of loss\.json_validity, .* are 0"):
        recipe(make_model(), None, tokenizer, **dict.fromkeys(NAMES, 0.0))


def test_a_vocabulary_smaller_than_the_tokenizers_is_a_mismatch(make_model: MakeModel) -> None:
    with pytest.raises(ModelMismatch, match="The teacher's vocabulary has 280 entries, the tokenizer's 290"):
        ProcessRecipe(make_model(vocab_size=300), make_model(vocab_size=280), ProcessLossConfig(), vocab_size=290)


@pytest.mark.parametrize("teacher", [{"kind": "api", "model": "m"}, {"kind": "logits", "path": "x"}])
def test_a_teacher_that_is_no_model_is_refused(teacher: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"process learns from a model .* teacher.kind is {teacher['kind']}"):
        validated(ProcessConfig, {"teacher": teacher})


def test_only_kd_needs_a_teacher() -> None:
    assert validated(ProcessConfig, {}).divergence is not None
    assert validated(ProcessConfig, {"loss": {"kd": 0}}).divergence is None


def test_without_a_file_a_task_with_answers_is_generated() -> None:
    source = PROCESS.load(validated(ProcessConfig, {"data": {"samples": 5}}))

    assert {4} == {len(sample["messages"]) for sample in source.samples}
