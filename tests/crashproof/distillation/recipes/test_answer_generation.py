import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.data.answer_data import AnswerBatch, AnswerData, AnswerSource
from crashproof.distillation.evaluation.evaluator import Place, added, means
from crashproof.distillation.evaluation.held_out_answers import AnswerEvaluator
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.recipes.answer_generation import ANSWER_GENERATION, AnswerRecipe
from crashproof.distillation.recipes.registry import TASKS
from crashproof.distillation.settings.recipes.answer_generation import AnswerGenerationConfig, AnswerLossConfig
from crashproof.distillation.settings.section import validated
from crashproof.distillation.tasks.answers import generated_answers
from crashproof.errors import ConfigError, ModelMismatch
from crashproof.pytorch.device import choose_device
from crashproof.pytorch.random_state import capture_random_state

MakeModel = Callable[..., PreTrainedModel]
CPU = choose_device("cpu")
ALONE = Place(rank=0, num_ranks=1, in_lockstep=False)
LINES = [
    {"prompt": "Two and two? ", "answer": "Four."},
    {"prompt": "The dog? ", "answer": "Lazy.", "rejected": "Brown and quick."},
    {"prompt": "The fox? ", "answer": "It jumps.", "quality": 0.25},
    {"prompt": "Over? ", "answer": "x", "quality": 0.0},
    {"prompt": "What is four? ", "answer": "Two and two.", "rejected": "Two."},
]


def load(tmp_path: Path, *lines: dict[str, Any]) -> AnswerSource:
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    config = AnswerGenerationConfig.model_validate({"data": {"path": path}})
    return ANSWER_GENERATION.load(config)


def tokenize(source: AnswerSource, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, **loss: float) -> AnswerData:
    config = AnswerGenerationConfig.model_validate({"loss": loss, "data": {"max_length": 512}})
    return ANSWER_GENERATION.tokenize(source, config, tokenizer, tmp_path / "cache")


@pytest.fixture
def data(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> AnswerData:
    return tokenize(load(tmp_path, *LINES), tokenizer, tmp_path)


def recipe(student: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, **loss: Any) -> AnswerRecipe:
    return AnswerRecipe(student, AnswerLossConfig(**loss), vocab_size=len(tokenizer))


def dense_means(student: PreTrainedModel, batch: AnswerBatch) -> tuple[list[Tensor], list[Tensor]]:
    """Of each sequence: minus log p of its predicted tokens, and their mean."""
    logprobs = student(input_ids=batch.input_ids).logits.log_softmax(dim=-1)
    costs = []
    for sequence, labels in enumerate(batch.labels):
        places = [place for place in range(1, len(labels)) if labels[place] != IGNORED]
        costs.append(torch.stack([-logprobs[sequence, place - 1, labels[place]] for place in places]))
    return costs, [each.mean() for each in costs]


def test_the_losses_have_their_documented_names(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: AnswerData
) -> None:
    made = recipe(make_model(), tokenizer)
    sums = made(data.batch([0, 1, 2]))

    assert TASKS["answer_generation"] is ANSWER_GENERATION
    assert ["generation_loss", "answer_quality_loss"] == list(sums) == list(made.weights)
    assert set(made.counted_by.values()) <= data.counts([0]).keys()


@pytest.mark.parametrize("chunk_tokens", [3, 512])
def test_the_losses_are_those_of_dense_formulas(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: AnswerData, chunk_tokens: int
) -> None:
    student, batch = make_model().double(), data.batch([0, 1, 2, 3, 4])
    costs, means = dense_means(student, batch)
    odds = [(-each).exp() / (1 - (-each).exp()) for each in means]

    sums = recipe(student, tokenizer, chunk_tokens=chunk_tokens)(batch)

    learned = costs[0].sum() + costs[1].sum() + costs[4].sum()
    pairs = sum(-functional.logsigmoid((odds[a] / odds[b]).log()) for a, b in ((1, 5), (4, 6)))
    torch.testing.assert_close(sums["generation_loss"], learned)
    torch.testing.assert_close(sums["answer_quality_loss"], pairs + 0.25 * means[2])


def test_gradients_of_the_student_agree_with_finite_differences(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: AnswerData
) -> None:
    student, batch = make_model().double(), data.batch([0, 1, 2])
    made = recipe(student, tokenizer)
    weight = student.get_input_embeddings().weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=weight.dtype)

    def total() -> Tensor:
        return torch.stack(list(made(batch).values())).sum()

    def moved(step: float) -> float:
        with torch.no_grad():
            weight.add_(direction, alpha=step)
            value = total().item()
            weight.sub_(direction, alpha=step)
        return value

    total().backward()

    # Llama's norms are computed in single precision whatever the weights are.
    slope = (moved(1e-4) - moved(-1e-4)) / 2e-4
    assert slope == pytest.approx((weight.grad * direction).sum().item(), rel=1e-4)


def test_a_batch_counts_as_much_as_its_samples_one_by_one(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: AnswerData
) -> None:
    made = recipe(make_model(), tokenizer)
    together = made(data.batch([0, 1, 2, 3, 4]))

    singles = [made(data.batch([index])) for index in range(5)]

    for name, value in together.items():
        torch.testing.assert_close(sum(each[name] for each in singles), value, rtol=1e-5, atol=1e-4)


def test_an_answer_without_quality_teaches_nothing(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: AnswerData
) -> None:
    student = make_model()

    sum(recipe(student, tokenizer)(data.batch([3])).values()).backward()  # type: ignore[union-attr]

    assert {0.0} == {each.grad.abs().max().item() for each in student.parameters() if each.grad is not None}


def test_training_prefers_the_better_answer(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, data: AnswerData
) -> None:
    made = recipe(make_model(), tokenizer, generation=0)
    optimizer, batch = torch.optim.SGD(made.parameters(), lr=0.5), data.batch([1, 4])
    before = made(batch)["answer_quality_loss"].item()

    for _ in range(20):
        optimizer.zero_grad()
        made(batch)["answer_quality_loss"].backward()
        optimizer.step()

    assert made(batch)["answer_quality_loss"].item() < before / 2


@pytest.mark.parametrize("left_out", ["generation", "answer_quality"])
def test_a_loss_without_weight_is_not_computed(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, left_out: str
) -> None:
    data = tokenize(load(tmp_path, *LINES), tokenizer, tmp_path, **{left_out: 0})
    made = recipe(make_model(), tokenizer, **{left_out: 0})

    batch = data.batch([0, 1])

    expected = {"generation_loss", "answer_quality_loss"} - {f"{left_out}_loss"}
    assert expected == set(made(batch)) == set(made.weights)
    assert (2 if left_out == "answer_quality" else 3) == len(batch.input_ids)


def test_no_weight_at_all_is_an_error(make_model: MakeModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match=r"Both loss\.generation and loss\.answer_quality are 0"):
        recipe(make_model(), tokenizer, generation=0, answer_quality=0)


def test_a_vocabulary_smaller_than_the_tokenizers_is_a_mismatch(make_model: MakeModel) -> None:
    with pytest.raises(ModelMismatch, match="The student's vocabulary has 270 entries, the tokenizer's 290"):
        AnswerRecipe(make_model(), AnswerLossConfig(), vocab_size=290)


def test_a_teacher_that_would_never_be_asked_is_refused() -> None:
    teacher = {"kind": "api", "model": "gpt", "base_url": "http://localhost/v1"}

    with pytest.raises(ConfigError, match=r"answer_generation asks no teacher, and teacher\.kind is api"):
        validated(AnswerGenerationConfig, {"teacher": teacher})


def test_the_generated_task_is_the_same_for_the_same_seed_and_reads_as_a_file_would(tmp_path: Path) -> None:
    first, again, other = (generated_answers(300, seed=seed) for seed in (3, 3, 4))

    assert first == again
    assert first.sha256 != other.sha256
    lines = [first.line(sample) for sample in first.samples]
    assert 120 < sum(line.rejected is not None for line in lines) < 180
    assert 30 < sum(line.quality is not None for line in lines) < 90
    assert {True, False} == {line.prompt is None for line in lines}
    # Few answers are said twice: it cannot be learned by heart.
    assert len({line.answer for line in lines}) > 270
    bare = [{key: value for key, value in sample.items() if key != "line"} for sample in first.samples]
    read = load(tmp_path, *bare)
    assert lines == [read.line(sample) for sample in read.samples]


def test_every_value_of_a_generated_answer_can_be_known(tmp_path: Path) -> None:
    """Whatever is not computed stands in the question."""
    source = generated_answers(200, seed=0)
    for line in map(source.line, source.samples):
        asked = line.prompt or json.dumps(line.messages)
        if "total" in line.answer or "difference" in line.answer or line.quality == 0:
            continue
        numbers = [word.strip(".,:") for word in line.answer.split() if word.strip(".,:").lstrip("-").isdigit()]
        assert [] == [number for number in numbers if number not in asked]


class Saying(torch.nn.Module):
    """Stands for a recipe; its student says the same to every prompt."""

    def __init__(self, recipe: AnswerRecipe, ids: list[int]) -> None:
        super().__init__()
        self.student = recipe.student
        self.cross_entropies = recipe.cross_entropies
        self._ids = ids

    def generate(self, input_ids: Tensor, attention_mask: Tensor, **settings: Any) -> Tensor:
        return torch.cat([input_ids, torch.tensor([self._ids]).expand(len(input_ids), -1)], dim=1)


def evaluator(source: AnswerSource, data: AnswerData, tokenizer: PreTrainedTokenizerFast) -> AnswerEvaluator:
    return AnswerEvaluator(source, data, tokenizer, num_generated=64)


def test_an_evaluation_scores_answers(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    source = load(tmp_path, *LINES)
    data = tokenize(source, tokenizer, tmp_path)
    made = recipe(make_model(), tokenizer)
    saying: Any = Saying(made, [*tokenizer("two and two", add_special_tokens=False)["input_ids"], 1, 5, 5])
    batch = data.batch([1, 4])
    _, costs = dense_means(made.student, batch)
    measured = evaluator(source, data, tokenizer)

    results = means(measured.sums(saying, CPU, ALONE))

    # Answers of a low quality are no reference: three are left, and one of them is "Two and two."
    assert {"perplexity", "answer_f1", "answer_exact_match", "preference_accuracy"} == set(results)
    assert results["answer_exact_match"] == results["answer_f1"] == pytest.approx(1 / 3)
    right = (costs[0] < costs[2]).item() + (costs[1] < costs[3]).item()
    assert results["preference_accuracy"] == right / 2
    of_references = [each for index in (0, 1, 4) for each in dense_means(made.student, data.batch([index]))[0][0]]
    assert results["perplexity"] == pytest.approx(torch.stack(of_references).mean().exp().item(), rel=1e-4)


def test_without_pairs_no_preference_accuracy_is_reported(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    source = load(tmp_path, *LINES[:1])
    measured = evaluator(source, tokenize(source, tokenizer, tmp_path), tokenizer)

    results = means(measured.sums(recipe(make_model(), tokenizer), CPU, ALONE))

    assert {"perplexity", "answer_f1", "answer_exact_match"} == set(results)


@pytest.mark.parametrize("in_lockstep", [False, True])
def test_several_processes_find_what_one_finds(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, in_lockstep: bool
) -> None:
    source = load(tmp_path, *LINES)
    measured = evaluator(source, tokenize(source, tokenizer, tmp_path), tokenizer)
    made = recipe(make_model(), tokenizer)
    # `generate` waits for the other processes in lockstep, and here are none.
    saying: Any = Saying(made, [*tokenizer("Lazy two", add_special_tokens=False)["input_ids"], 1])

    shares = [measured.sums(saying, CPU, Place(rank=rank, num_ranks=2, in_lockstep=in_lockstep)) for rank in range(2)]

    alone = means(measured.sums(saying, CPU, ALONE))
    assert alone == pytest.approx(means(added(shares)), rel=1e-5)


def test_an_evaluation_changes_nothing(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    source = load(tmp_path, *LINES)
    measured = evaluator(source, tokenize(source, tokenizer, tmp_path), tokenizer)
    made = recipe(make_model(), tokenizer).train()
    weights = {name: each.clone() for name, each in made.state_dict().items()}
    before = capture_random_state()

    measured.sums(made, CPU, ALONE)

    after = capture_random_state()
    assert made.training
    assert all(torch.equal(weights[name], each) for name, each in made.state_dict().items())
    assert torch.equal(before.pop("torch"), after.pop("torch"))
    assert before == after
