import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loss_sums import cross_entropy_sum, forward_kl_sum, hidden_distance_sum
from torch import Tensor
from torch.nn import functional

from crashproof.distillation.losses.divergences import IGNORED, next_token_targets

VOCABULARY = 11
TARGETS = torch.tensor([[3, IGNORED, 5, 0, IGNORED], [IGNORED, 10, 2, 2, IGNORED]])


def random_logits(seed: int, vocabulary: int = VOCABULARY, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(2, 5, vocabulary, generator=generator, dtype=torch.float64).to(dtype)


def dense_kl(student: Tensor, teacher: Tensor, temperature: float, *, is_scaled: bool = True) -> Tensor:
    """The formula as it stands in the paper, everything at once."""
    p = functional.softmax(teacher / temperature, dim=-1)
    log_q = functional.log_softmax(student / temperature, dim=-1)
    of_tokens = (p * (p.log() - log_q)).sum(dim=-1)
    return of_tokens[TARGETS != IGNORED].sum() * (temperature**2 if is_scaled else 1.0)


def dense_ce(student: Tensor) -> Tensor:
    return functional.cross_entropy(student.flatten(0, 1), TARGETS.flatten(), ignore_index=IGNORED, reduction="sum")


def value_and_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("chunk_tokens", [1, 2, 4, 512])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
@pytest.mark.parametrize("is_scaled", [True, False], ids=["scaled", "unscaled"])
def test_the_divergence_in_chunks_is_the_dense_one(temperature: float, is_scaled: bool, chunk_tokens: int) -> None:
    teacher = random_logits(1)
    expected = value_and_gradient(
        lambda student: dense_kl(student, teacher, temperature, is_scaled=is_scaled), random_logits(0)
    )

    actual = value_and_gradient(
        lambda student: forward_kl_sum(
            student,
            teacher,
            TARGETS,
            vocab_size=VOCABULARY,
            temperature=temperature,
            scales_by_temperature_squared=is_scaled,
            chunk_tokens=chunk_tokens,
        ),
        random_logits(0),
    )

    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 4, 512])
def test_the_cross_entropy_in_chunks_is_the_dense_one(chunk_tokens: int) -> None:
    expected = value_and_gradient(dense_ce, random_logits(0))

    actual = value_and_gradient(
        lambda student: cross_entropy_sum(student, TARGETS, chunk_tokens=chunk_tokens), random_logits(0)
    )

    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weigh", [1.0, 0.25])
def test_gradients_agree_with_finite_differences(weigh: float) -> None:
    teacher = random_logits(1, dtype=torch.float64)

    def both(student: Tensor) -> tuple[Tensor, Tensor]:
        kl = forward_kl_sum(student, teacher, TARGETS, vocab_size=9, temperature=2.0, chunk_tokens=2)
        return weigh * kl, cross_entropy_sum(student, TARGETS, chunk_tokens=2)

    student = random_logits(0, dtype=torch.float64).requires_grad_()

    assert torch.autograd.gradcheck(both, (student,), eps=1e-6, atol=1e-5)


def test_a_student_that_equals_its_teacher_learns_nothing() -> None:
    value, gradient = value_and_gradient(
        lambda student: forward_kl_sum(student, random_logits(0), TARGETS, vocab_size=VOCABULARY, temperature=2.0),
        random_logits(0),
    )

    assert abs(value.item()) < 1e-5
    assert gradient.abs().max().item() < 1e-6


def test_temperature_squared_keeps_the_gradients_size() -> None:
    """Both tend to (student - teacher) / vocabulary for high temperatures, where the logits have mean 0."""
    student = random_logits(0) - random_logits(0).mean(dim=-1, keepdim=True)
    teacher = random_logits(1) - random_logits(1).mean(dim=-1, keepdim=True)

    _, gradient = value_and_gradient(
        lambda logits: forward_kl_sum(logits, teacher, TARGETS, vocab_size=VOCABULARY, temperature=1000.0), student
    )

    expected = (student - teacher) / VOCABULARY * (TARGETS != IGNORED).unsqueeze(-1)
    torch.testing.assert_close(gradient, expected, rtol=2e-2, atol=2e-2)


def test_labels_are_shifted_left_once() -> None:
    labels = torch.tensor([[7, 8, 9], [IGNORED, 4, IGNORED]])

    assert [[8, 9, IGNORED], [4, IGNORED, IGNORED]] == next_token_targets(labels).tolist()


def test_the_shift_is_the_one_that_transformers_make(make_model: Callable[..., Any]) -> None:
    model = make_model()
    tokens = torch.randint(0, 270, (2, 9), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    labels[0, :4] = IGNORED
    expected = model(input_ids=tokens, labels=labels).loss

    targets = next_token_targets(labels)
    actual = cross_entropy_sum(model(input_ids=tokens).logits, targets) / (targets != IGNORED).sum()

    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spoilt", [math.nan, math.inf, 1e30], ids=["NaN", "infinity", "a huge number"])
def test_what_is_not_counted_counts_nothing(spoilt: float) -> None:
    student, teacher = random_logits(0), random_logits(1)
    student[TARGETS == IGNORED] = spoilt
    teacher[TARGETS == IGNORED] = spoilt

    def losses(logits: Tensor) -> Tensor:
        kl = forward_kl_sum(logits, teacher, TARGETS, vocab_size=VOCABULARY, temperature=2.0, chunk_tokens=3)
        return kl + cross_entropy_sum(logits, TARGETS, chunk_tokens=3)

    value, gradient = value_and_gradient(losses, student)

    expected = dense_kl(random_logits(0), random_logits(1), 2.0) + dense_ce(random_logits(0))
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    assert 0 == gradient[TARGETS == IGNORED].abs().sum()


def test_where_nothing_is_counted_the_loss_is_zero() -> None:
    nothing = torch.full_like(TARGETS, IGNORED)

    value, gradient = value_and_gradient(lambda logits: cross_entropy_sum(logits, nothing), random_logits(0))

    assert (0.0, 0.0) == (value.item(), gradient.abs().sum().item())


def test_entries_beyond_the_shared_vocabulary_are_padding_to_the_divergence() -> None:
    student, teacher = random_logits(0, VOCABULARY + 6), random_logits(1, VOCABULARY + 2)

    value, gradient = value_and_gradient(
        lambda logits: forward_kl_sum(logits, teacher, TARGETS, vocab_size=VOCABULARY, temperature=2.0), student
    )

    expected = dense_kl(student[..., :VOCABULARY], teacher[..., :VOCABULARY], 2.0)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    assert 0 == gradient[..., VOCABULARY:].abs().sum()


def test_no_gradient_flows_to_the_teacher() -> None:
    teacher = random_logits(1).requires_grad_()
    student = random_logits(0).requires_grad_()

    forward_kl_sum(student, teacher, TARGETS, vocab_size=VOCABULARY, temperature=2.0).backward()

    assert teacher.grad is None


def test_a_token_that_the_teacher_forbids_counts_nothing() -> None:
    teacher = random_logits(1)
    teacher[..., 4] = -math.inf

    value, gradient = value_and_gradient(
        lambda logits: forward_kl_sum(logits, teacher, TARGETS, vocab_size=VOCABULARY, temperature=2.0),
        random_logits(0),
    )

    assert math.isfinite(value.item())
    assert gradient.isfinite().all()


def test_half_precision_logits_are_computed_in_single() -> None:
    student, teacher = random_logits(0).bfloat16(), random_logits(1).bfloat16()

    value, gradient = value_and_gradient(
        lambda logits: forward_kl_sum(logits, teacher, TARGETS, vocab_size=VOCABULARY, temperature=2.0), student
    )

    torch.testing.assert_close(value, dense_kl(student.float(), teacher.float(), 2.0), rtol=1e-5, atol=1e-5)
    assert torch.bfloat16 == gradient.dtype


def test_hidden_states_are_compared_where_something_is_counted() -> None:
    student, teacher = random_logits(0), random_logits(1)
    expected = (student - teacher).square().mean(dim=-1)[TARGETS != IGNORED].sum()
    student[TARGETS == IGNORED] = math.nan

    actual, gradient = value_and_gradient(lambda hidden: hidden_distance_sum(hidden, teacher, TARGETS), student)

    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert 0 == gradient[TARGETS == IGNORED].abs().sum()
