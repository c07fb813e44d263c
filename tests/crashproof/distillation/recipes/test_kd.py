import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from crashproof.distillation.data.text_data import Batch, TopK
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.recipes.kd import KdRecipe
from crashproof.distillation.settings.recipes.kd import KdLossConfig
from crashproof.errors import ConfigError, ModelMismatch

MakeModel = Callable[..., PreTrainedModel]
VOCABULARY = 270


@pytest.fixture
def batch() -> Batch:
    tokens = torch.randint(0, VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    labels[0, :3] = IGNORED
    mask = torch.ones_like(tokens)
    mask[1, 6:] = 0
    labels[1, 6:] = IGNORED
    return Batch(input_ids=tokens, attention_mask=mask, labels=labels)


def recipe(student: PreTrainedModel, teacher: PreTrainedModel, **loss: Any) -> KdRecipe:
    return KdRecipe(student, teacher, KdLossConfig(**loss), vocab_size=VOCABULARY)


def test_the_losses_have_their_documented_names(make_model: MakeModel, batch: Batch) -> None:
    sums = recipe(make_model(0), make_model(1))(batch)

    assert ["kd", "ce", "intermediate"] == list(sums)
    assert all(value.dim() == 0 and value.item() > 0 for value in sums.values())


@pytest.mark.parametrize("left_out", ["kd", "ce", "intermediate"])
def test_a_loss_without_weight_is_not_computed(make_model: MakeModel, batch: Batch, left_out: str) -> None:
    made = recipe(make_model(0), make_model(1), **{left_out: 0.0})

    assert {"kd", "ce", "intermediate"} - {left_out} == set(made(batch)) == set(made.weights)


def test_no_weight_at_all_is_an_error(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match=r"All of loss\.kd, loss\.ce and loss\.intermediate are 0"):
        recipe(make_model(0), make_model(1), kd=0, ce=0, intermediate=0)


def test_a_student_that_is_its_teacher_gets_no_gradient_from_it(make_model: MakeModel, batch: Batch) -> None:
    student = make_model(0)

    sums = recipe(student, make_model(0), ce=0, intermediate=0)(batch)
    sums["kd"].backward()

    assert abs(sums["kd"].item()) < 1e-4
    gradients = [parameter.grad for parameter in student.parameters()]
    assert all(gradient is not None and gradient.abs().max() < 1e-5 for gradient in gradients)


def test_a_batch_counts_as_much_as_its_samples_one_by_one(make_model: MakeModel, batch: Batch) -> None:
    made = recipe(make_model(0), make_model(1))
    together = made(batch)

    singles = [
        made(
            Batch(
                input_ids=batch.input_ids[row : row + 1, :length],
                attention_mask=batch.attention_mask[row : row + 1, :length],
                labels=batch.labels[row : row + 1, :length],
            )
        )
        for row, length in ((0, 8), (1, 6))
    ]

    for name, value in together.items():
        torch.testing.assert_close(singles[0][name] + singles[1][name], value, rtol=1e-5, atol=1e-4)


def test_larger_vocabularies_are_padding(make_model: MakeModel, batch: Batch) -> None:
    sums = recipe(make_model(0, vocab_size=300), make_model(1, vocab_size=290))(batch)

    assert all(value.isfinite() for value in sums.values())


@pytest.mark.parametrize("small", ["teacher", "student"])
def test_a_vocabulary_smaller_than_the_tokenizers_is_a_mismatch(make_model: MakeModel, small: str) -> None:
    models = {"student": make_model(0, vocab_size=300), "teacher": make_model(1, vocab_size=300)}
    models[small] = make_model(0, vocab_size=280)

    with pytest.raises(ModelMismatch, match=f"The {small}'s vocabulary has 280 entries, the tokenizer's 290"):
        KdRecipe(models["student"], models["teacher"], KdLossConfig(), vocab_size=290)


def test_the_teacher_is_neither_trained_nor_saved(make_model: MakeModel, batch: Batch) -> None:
    teacher = make_model(1)
    made = recipe(make_model(0), teacher)

    sum(made(batch).values()).backward()  # type: ignore[union-attr]

    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert ["student", "projections"] == [name for name, _ in made.named_children()]
    trained = {id(each) for each in made.parameters()}
    assert not trained & {id(parameter) for parameter in teacher.parameters()}


def test_every_trained_weight_gets_a_gradient(make_model: MakeModel, batch: Batch) -> None:
    made = recipe(make_model(0), make_model(1, d_model=32, num_layers=3))

    sum(made(batch).values()).backward()  # type: ignore[union-attr]

    named = list(made.named_parameters())
    assert [] == [name for name, parameter in named if parameter.grad is None]


@pytest.mark.parametrize(
    "num_student, num_teacher, expected",
    [(2, 2, {1: 1, 2: 2}), (2, 4, {1: 2, 2: 4}), (1, 3, {1: 3}), (3, 1, {1: 1, 2: 1, 3: 1})],
)
def test_layers_are_spread_evenly_and_the_last_meets_the_last(
    make_model: MakeModel, num_student: int, num_teacher: int, expected: dict[int, int]
) -> None:
    models = make_model(num_layers=num_student), make_model(num_layers=num_teacher)

    by_default = recipe(*models, kd=0, ce=0).projections

    assert sorted(map(str, expected)) == sorted(name for name, _ in by_default.named_children())
    torch.manual_seed(0)
    spread = recipe(*models, kd=0, ce=0)
    torch.manual_seed(0)
    asked = recipe(*models, kd=0, ce=0, layers=expected)
    tokens = torch.arange(6).view(1, 6)
    batch = Batch(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens)
    assert torch.equal(spread(batch)["intermediate"], asked(batch)["intermediate"])


@pytest.mark.parametrize("layers", [{3: 1}, {1: 3}, {0: 1}, {1: 0}])
def test_a_layer_that_does_not_exist_is_an_error(make_model: MakeModel, layers: dict[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"loss\.layers maps .* the student has 2 layers, the teacher 2"):
        recipe(make_model(0), make_model(1), layers=layers)


def with_topk(batch: Batch, teacher: PreTrainedModel, k: int, temperature: float) -> Batch:
    logits = teacher(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    largest = functional.log_softmax(logits[..., :VOCABULARY] / temperature, dim=-1).topk(k, dim=-1)
    return dataclasses.replace(batch, topk=TopK(ids=largest.indices, logprobs=largest.values.detach()))


def test_without_a_teacher_the_batch_holds_its_distributions(make_model: MakeModel, batch: Batch) -> None:
    student, teacher = make_model(0), make_model(1)
    expected = recipe(student, teacher, intermediate=0)(batch)

    made = KdRecipe(student, None, KdLossConfig(intermediate=0), vocab_size=VOCABULARY)

    sums = made(with_topk(batch, teacher, VOCABULARY, KdLossConfig().temperature))
    assert ["kd", "ce"] == list(sums)
    torch.testing.assert_close(sums, expected, rtol=1e-4, atol=1e-4)
    assert ["student", "projections"] == [name for name, _ in made.named_children()]


def test_without_a_teacher_fewer_entries_see_less_of_the_divergence(make_model: MakeModel, batch: Batch) -> None:
    made = KdRecipe(make_model(0), None, KdLossConfig(intermediate=0, ce=0), vocab_size=VOCABULARY)

    few, many = (made(with_topk(batch, make_model(1), k, 2.0))["kd"] for k in (4, 64))

    assert 0 < few < many
