import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tool_lines import one_call
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.data.tool_data import ToolData
from crashproof.distillation.data.tool_tokens import ARGUMENTS, SELECTION
from crashproof.distillation.recipes.registry import TASKS
from crashproof.distillation.recipes.tool_select import TOOL_SELECT, ToolSelectRecipe
from crashproof.distillation.settings.recipes.tool_select import ToolSelectConfig, ToolSelectLossConfig
from crashproof.distillation.settings.section import validated
from crashproof.errors import ConfigError, DataError

MakeModel = Callable[..., PreTrainedModel]
LINES = [one_call(), one_call("search_web", {"query": "fox"}), one_call("clock", {})]


@pytest.fixture
def data(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> ToolData:
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)))
    config = ToolSelectConfig.model_validate({"data": {"path": path, "max_length": 2048}})
    return TOOL_SELECT.tokenize(TOOL_SELECT.load(config), config, tokenizer, tmp_path / "cache")


def recipe(student: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, **loss: Any) -> ToolSelectRecipe:
    return ToolSelectRecipe(student, ToolSelectLossConfig(**loss), vocab_size=len(tokenizer))


def test_the_losses_have_their_documented_names(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: ToolData
) -> None:
    made = recipe(make_model(), tokenizer)
    sums = made(data.batch([0, 1, 2]))

    assert TASKS["tool_select"] is TOOL_SELECT
    assert ["tool_selection_loss", "argument_synthesis_loss"] == list(sums) == list(made.weights)
    assert set(made.counted_by.values()) <= data.counts([0]).keys()


@pytest.mark.parametrize("distractors", [0.0, 1.0, 2.5])
def test_the_losses_are_those_of_dense_formulas(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: ToolData, distractors: float
) -> None:
    student, batch = make_model().double(), data.batch([0, 1, 2])
    logits = student(input_ids=batch.input_ids).logits.log_softmax(dim=-1)
    selection = arguments = choice = torch.tensor(0.0, dtype=torch.float64)
    for row in range(len(batch.input_ids)):
        for at in range(batch.input_ids.shape[1] - 1):
            token, part = batch.input_ids[row, at + 1], batch.parts[row, at]
            if part & SELECTION:
                selection = selection - logits[row, at, token]
                offered = [each for each in batch.choices[row, at].tolist() if each >= 0]
                choice = choice + logits[row, at, offered].logsumexp(dim=0) - logits[row, at, token]
            if part & ARGUMENTS:
                arguments = arguments - logits[row, at, token]

    sums = recipe(student, tokenizer, distractors=distractors)(batch)

    torch.testing.assert_close(sums["tool_selection_loss"], selection + distractors * choice)
    torch.testing.assert_close(sums["argument_synthesis_loss"], arguments)


@pytest.mark.parametrize("left_out", ["tool_selection", "argument_synthesis"])
def test_a_loss_without_weight_is_not_computed(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: ToolData, left_out: str
) -> None:
    made = recipe(make_model(), tokenizer, **{left_out: 0})

    expected = {"tool_selection_loss", "argument_synthesis_loss"} - {f"{left_out}_loss"}
    assert expected == set(made(data.batch([0]))) == set(made.weights)


def test_a_batch_counts_as_much_as_its_samples_one_by_one(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: ToolData
) -> None:
    made = recipe(make_model(), tokenizer)

    together = made(data.batch([0, 1, 2]))

    singles = [made(data.batch([index])) for index in range(3)]
    for name, value in together.items():
        torch.testing.assert_close(sum(single[name] for single in singles), value, rtol=1e-5, atol=1e-4)


def test_every_weight_gets_a_gradient_and_it_learns(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: ToolData
) -> None:
    made, batch = recipe(make_model(), tokenizer, chunk_tokens=16), data.batch([0, 1, 2])
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    losses = []

    for _ in range(5):
        loss = sum(made(batch).values())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        assert [] == [name for name, each in made.named_parameters() if each.grad is None]
        optimizer.step()
        losses.append(loss.item())  # type: ignore[union-attr]

    assert losses[-1] < 0.9 * losses[0]


def test_no_weight_at_all_is_an_error(make_model: MakeModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match=r"Both loss\.tool_selection and loss\.argument_synthesis are 0"):
        recipe(make_model(), tokenizer, tool_selection=0, argument_synthesis=0)


@pytest.mark.parametrize("teacher", [{"kind": "api", "model": "m"}, {"kind": "logits", "path": "x"}])
def test_a_teacher_that_is_no_model_is_refused(teacher: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="tool_select asks no teacher"):
        validated(ToolSelectConfig, {"teacher": teacher})


def test_two_calls_in_a_line_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    two = one_call()
    two["messages"] = [*two["messages"], *two["messages"]]
    path.write_text(json.dumps(two))

    with pytest.raises(DataError, match="line 1: it must have exactly one tool call, and has 2"):
        TOOL_SELECT.load(ToolSelectConfig.model_validate({"data": {"path": path}}))


def test_without_a_file_a_task_is_generated() -> None:
    source = TOOL_SELECT.load(ToolSelectConfig.model_validate({"data": {"samples": 12}}))

    assert 12 == len(source.samples)
    assert source.path is None
