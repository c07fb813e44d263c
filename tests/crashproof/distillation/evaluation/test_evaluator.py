from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.data.text_data import TokenizedData
from crashproof.distillation.evaluation.evaluator import NATS, Place, TextEvaluator, added, means
from crashproof.distillation.evaluation.generated_text import generate_texts
from crashproof.distillation.recipes.kd import KdRecipe
from crashproof.distillation.settings.recipes.kd import KdLossConfig
from crashproof.distillation.text.tokenizer import encode_text
from crashproof.pytorch.device import choose_device
from crashproof.pytorch.random_state import capture_random_state

ALONE = Place(rank=0, num_ranks=1, in_lockstep=False)
CPU = choose_device("cpu")


def tokens_of(tokenizer: PreTrainedTokenizerFast, *texts: str) -> list[list[int]]:
    return [encode_text(tokenizer, text).ids for text in texts]


@pytest.fixture
def recipe(make_model: Callable[..., PreTrainedModel]) -> KdRecipe:
    return KdRecipe(make_model(0), make_model(1), KdLossConfig(), vocab_size=270)


@pytest.fixture
def tokens() -> TokenizedData:
    """Eleven samples of two to twelve tokens."""
    lengths = torch.arange(2, 13)
    ids = torch.randint(0, 270, (int(lengths.sum()),), generator=torch.Generator().manual_seed(0))
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    return TokenizedData(input_ids=ids, labels=ids.clone(), starts=starts, pad_id=0)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("in_lockstep", [False, True])
@pytest.mark.parametrize("num_samples", [0, 1, 7, 16])
def test_processes_share_samples_and_each_counts_once(num_ranks: int, in_lockstep: bool, num_samples: int) -> None:
    shares = [
        list(Place(rank=rank, num_ranks=num_ranks, in_lockstep=in_lockstep).batches(num_samples, 3))
        for rank in range(num_ranks)
    ]

    counted = [
        index
        for share in shares
        for indices, counts in share
        for index, is_counted in zip(indices, counts, strict=True)
        if is_counted
    ]
    assert list(range(num_samples)) == sorted(counted)
    if in_lockstep:
        assert 1 == len({tuple(len(indices) for indices, _ in share) for share in shares})


def test_the_perplexity_is_that_of_the_whole_model(recipe: KdRecipe, tokens: TokenizedData) -> None:
    nats = num_tokens = 0.0
    for index in range(len(tokens)):
        ids = tokens.batch([index]).input_ids
        nats += recipe.student(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        num_tokens += ids.shape[1] - 1
    evaluator = TextEvaluator(tokens)

    results = means(evaluator.sums(recipe, CPU, ALONE))

    assert {"perplexity": pytest.approx(math.exp(nats / num_tokens), rel=1e-4)} == results


@pytest.mark.parametrize("in_lockstep", [False, True])
def test_several_processes_find_what_one_finds(recipe: KdRecipe, tokens: TokenizedData, in_lockstep: bool) -> None:
    evaluator = TextEvaluator(tokens)
    whole = evaluator.sums(recipe, CPU, ALONE)

    shares = [
        evaluator.sums(recipe, CPU, Place(rank=rank, num_ranks=4, in_lockstep=in_lockstep)) for rank in range(4)
    ]

    together = added(shares)
    assert whole[NATS][1] == together[NATS][1]
    assert whole[NATS][0] == pytest.approx(together[NATS][0], rel=1e-5)


def test_measuring_changes_nothing(
    recipe: KdRecipe, tokens: TokenizedData, tokenizer: PreTrainedTokenizerFast
) -> None:
    before = {name: each.clone() for name, each in recipe.state_dict().items()}
    random_before = capture_random_state()
    recipe.train()

    TextEvaluator(tokens).sums(recipe, CPU, ALONE)
    generate_texts(recipe, tokens_of(tokenizer, "The quick"), tokenizer, CPU, max_new_tokens=5, in_lockstep=False)

    assert recipe.training
    assert all(torch.equal(before[name], each) for name, each in recipe.state_dict().items())
    assert torch.equal(random_before["torch"], capture_random_state()["torch"])
    assert random_before["numpy"] == capture_random_state()["numpy"]
    assert random_before["python"] == capture_random_state()["python"]


def test_answers_do_not_depend_on_the_other_prompts_of_a_batch(
    recipe: KdRecipe, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = ["The quick", "What is two and two? Two and", "fox"]

    def said(asked: list[str]) -> list[str]:
        return generate_texts(
            recipe,
            tokens_of(tokenizer, *asked),
            tokenizer,
            CPU,
            max_new_tokens=6,
            in_lockstep=False,
        )

    recipe.train(False)
    assert [said([prompt])[0] for prompt in prompts] == said(prompts)


def test_an_answer_ends_where_the_student_ends_it(recipe: KdRecipe, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("two", add_special_tokens=False)["input_ids"]

    class Fixed(torch.nn.Module):
        student = recipe.student

        def generate(self, input_ids: Any, attention_mask: Any, **settings: Any) -> Any:
            said = torch.tensor([[*ids, tokenizer.eos_token_id, *ids]]).expand(len(input_ids), -1)
            return torch.cat([input_ids, said], dim=1)

    fixed: Any = Fixed()

    assert ["two"] == generate_texts(
        fixed, tokens_of(tokenizer, "x"), tokenizer, CPU, max_new_tokens=9, in_lockstep=False
    )


@pytest.mark.parametrize(
    "mark, said, num_ends",
    [
        ("<|im_end|>", "two", 2),
        ("[/turn]", "two", 1),
        (";", "two;fox", 1),
        ("", "two", 1),
    ],
    ids=["one token", "several tokens", "too short to be told from text", "none"],
)
def test_an_answer_ends_at_the_mark_of_the_chat_template(
    recipe: KdRecipe, tokenizer: PreTrainedTokenizerFast, mark: str, said: str, num_ends: int
) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    template = "{% for message in messages %}[{{ message.content }}" + mark + "{% endfor %}"
    tokenizer.chat_template = template if mark else "{{ raise_exception('no') }}"
    ids = tokenizer(f"two{mark}fox" if mark else "two", add_special_tokens=False)["input_ids"]
    asked: dict[str, Any] = {}

    class Fixed(torch.nn.Module):
        student = recipe.student

        def generate(self, input_ids: Any, attention_mask: Any, **settings: Any) -> Any:
            asked.update(settings)
            return torch.cat([input_ids, torch.tensor([ids])], dim=1)

    fixed: Any = Fixed()

    assert [said] == generate_texts(
        fixed, tokens_of(tokenizer, "x"), tokenizer, CPU, max_new_tokens=9, in_lockstep=False
    )
    assert asked["eos_token_id"] == [1, tokenizer.convert_tokens_to_ids("<|im_end|>")][:num_ends]


def test_what_was_counted_nowhere_is_left_out_and_no_number_is_infinite() -> None:
    assert {} == means({"answer_f1": (0.0, 0)})
    assert {"perplexity": pytest.approx(math.e), "answer_f1": 0.5} == means({"answer_f1": (1, 2), NATS: (3.0, 3)})
    assert math.isfinite(means({NATS: (1e9, 1)})["perplexity"])
