import math
from collections.abc import Callable

import pytest
import torch
from loss_sums import forward_kl_sum, topk_kl_sum
from torch import Tensor
from torch.nn import functional

from crashproof.distillation.losses.divergences import IGNORED

VOCABULARY = 11
TARGETS = torch.tensor([[3, IGNORED, 5, 0, IGNORED], [IGNORED, 10, 2, 2, IGNORED]])


def random_logits(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(2, 5, VOCABULARY, generator=generator, dtype=torch.float64).to(dtype)


def topk_of(teacher: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities, as a capture keeps them but without its rounding."""
    largest = functional.log_softmax(teacher / temperature, dim=-1).topk(k, dim=-1)
    return largest.indices, largest.values


def dense_kl(student: Tensor, ids: Tensor, logprobs: Tensor, temperature: float) -> Tensor:
    """The formula as it is written, in float64, with the last bucket as 1 minus the others."""
    p = logprobs.double().exp()
    q = functional.softmax(student.double() / temperature, dim=-1).gather(-1, ids)
    p, q = (torch.cat([each, 1 - each.sum(dim=-1, keepdim=True)], dim=-1) for each in (p, q))
    return (p * (p / q).log()).sum(dim=-1)[TARGETS != IGNORED].sum() * temperature**2


def value_and_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("k", [1, 4, VOCABULARY - 1])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 512])
def test_the_divergence_over_buckets_is_the_dense_one(k: int, temperature: float, chunk_tokens: int) -> None:
    ids, logprobs = topk_of(random_logits(1, torch.float64), k, temperature)
    expected = value_and_gradient(
        lambda student: dense_kl(student, ids, logprobs, temperature), random_logits(0, torch.float64)
    )

    value, gradient = value_and_gradient(
        lambda student: topk_kl_sum(
            student,
            ids,
            logprobs.float(),
            TARGETS,
            vocab_size=VOCABULARY,
            temperature=temperature,
            chunk_tokens=chunk_tokens,
        ),
        random_logits(0),
    )

    torch.testing.assert_close((value.double(), gradient.double()), expected, rtol=1e-4, atol=1e-4)


def test_gradients_agree_with_finite_differences() -> None:
    ids, logprobs = topk_of(random_logits(1, torch.float64), 4, 2.0)
    ids[0, 0, 2:] = -1

    def loss(student: Tensor) -> Tensor:
        return topk_kl_sum(student, ids, logprobs, TARGETS, vocab_size=9, temperature=2.0, chunk_tokens=2)

    ids = ids.clamp(max=8)
    student = random_logits(0, torch.float64).requires_grad_()

    assert torch.autograd.gradcheck(loss, (student,), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("k", [1, 4, VOCABULARY])
def test_a_student_that_equals_its_teacher_learns_nothing(k: int) -> None:
    ids, logprobs = topk_of(random_logits(0), k, 2.0)

    value, gradient = value_and_gradient(
        lambda student: topk_kl_sum(student, ids, logprobs, TARGETS, vocab_size=VOCABULARY, temperature=2.0),
        random_logits(0),
    )

    assert abs(value.item()) < 1e-5
    assert gradient.abs().max().item() < 1e-6


@pytest.mark.parametrize("is_rounded", [False, True], ids=["exact", "rounded to 16 bits"])
def test_with_every_entry_kept_it_is_the_divergence_over_the_vocabulary(is_rounded: bool) -> None:
    teacher = random_logits(1)
    ids, logprobs = topk_of(teacher, VOCABULARY, 2.0)
    if is_rounded:
        logprobs = logprobs.half().float()
    expected = value_and_gradient(
        lambda student: forward_kl_sum(student, teacher, TARGETS, vocab_size=VOCABULARY, temperature=2.0),
        random_logits(0),
    )

    actual = value_and_gradient(
        lambda student: topk_kl_sum(student, ids, logprobs, TARGETS, vocab_size=VOCABULARY, temperature=2.0),
        random_logits(0),
    )

    tolerance = 2e-2 if is_rounded else 1e-5
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_the_more_entries_are_kept_the_more_of_the_divergence_is_seen_and_never_more_than_all() -> None:
    """The data processing inequality."""
    teacher, student = random_logits(1), random_logits(0)
    whole = forward_kl_sum(student, teacher, TARGETS, vocab_size=VOCABULARY, temperature=1.0).item()

    seen = [
        topk_kl_sum(student, *topk_of(teacher, k), TARGETS, vocab_size=VOCABULARY, temperature=1.0).item()
        for k in range(1, VOCABULARY + 1)
    ]

    assert sorted(seen) == seen
    assert 0 < seen[0] < seen[-1] <= whole * (1 + 1e-6)


def test_an_entry_without_a_token_of_the_student_counts_to_the_others() -> None:
    ids, logprobs = topk_of(random_logits(1), 4)
    expected = topk_kl_sum(
        random_logits(0), ids[..., :3], logprobs[..., :3], TARGETS, vocab_size=VOCABULARY, temperature=1.0
    )

    ids[..., 3] = -1

    actual = topk_kl_sum(random_logits(0), ids, logprobs, TARGETS, vocab_size=VOCABULARY, temperature=1.0)
    torch.testing.assert_close(actual, expected)


def test_a_position_of_which_nothing_is_known_teaches_nothing() -> None:
    ids, logprobs = torch.full((2, 5, 3), -1), torch.full((2, 5, 3), -math.inf)

    value, gradient = value_and_gradient(
        lambda student: topk_kl_sum(student, ids, logprobs, TARGETS, vocab_size=VOCABULARY, temperature=1.0),
        random_logits(0),
    )

    assert abs(value.item()) < 1e-5
    assert gradient.abs().max().item() < 1e-6


def test_what_the_student_has_beyond_the_vocabulary_is_padding() -> None:
    ids, logprobs = topk_of(random_logits(1)[..., :8], 3)
    spoilt = random_logits(0)
    spoilt[..., 8:] = 1e30

    expected = topk_kl_sum(random_logits(0), ids, logprobs, TARGETS, vocab_size=8, temperature=1.0)

    assert expected == topk_kl_sum(spoilt, ids, logprobs, TARGETS, vocab_size=8, temperature=1.0)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_give_numbers(size: float) -> None:
    ids, logprobs = topk_of(random_logits(1), 3)
    student = random_logits(0)
    student[..., 0] = size
    student[0, 0, 1:] = -size

    value, gradient = value_and_gradient(
        lambda logits: topk_kl_sum(logits, ids, logprobs, TARGETS, vocab_size=VOCABULARY, temperature=1.0), student
    )

    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("k", [1, 3, VOCABULARY])
def test_a_teacher_that_is_certain_asks_for_one_token(k: int) -> None:
    teacher = torch.full((2, 5, VOCABULARY), -math.inf)
    teacher[..., 4] = 0.0
    ids, logprobs = topk_of(teacher, k)
    wanted = torch.where(TARGETS == IGNORED, IGNORED, 4)
    expected = value_and_gradient(
        lambda student: functional.cross_entropy(student.flatten(0, 1), wanted.flatten(), reduction="sum"),
        random_logits(0),
    )

    actual = value_and_gradient(
        lambda student: topk_kl_sum(student, ids, logprobs, TARGETS, vocab_size=VOCABULARY, temperature=1.0),
        random_logits(0),
    )

    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_what_the_student_gives_to_the_others_is_seen_however_little_it_is() -> None:
    """In float32, 1 minus the kept probabilities would be 0, and its logarithm no number."""
    student = torch.zeros(2, 5, VOCABULARY)
    student[..., 0] = 60.0
    ids, logprobs = torch.zeros(2, 5, 1, dtype=torch.long), torch.full((2, 5, 1), math.log(0.9))
    rest = math.log(10) - 60
    expected = 6 * (0.9 * math.log(0.9) + 0.1 * (math.log(0.1) - rest))

    value, gradient = value_and_gradient(
        lambda logits: topk_kl_sum(logits, ids, logprobs, TARGETS, vocab_size=VOCABULARY, temperature=1.0), student
    )

    assert pytest.approx(expected, rel=1e-6) == value.item()
    assert pytest.approx(-0.01, rel=1e-5) == gradient[0, 0, 1].item()


def test_kept_entries_that_sum_to_more_than_1_are_brought_back_to_1() -> None:
    ids, logprobs = topk_of(random_logits(1), 4)
    logprobs = logprobs - logprobs.logsumexp(dim=-1, keepdim=True)

    expected, actual = (
        topk_kl_sum(random_logits(0), ids, logprobs + more, TARGETS, vocab_size=VOCABULARY, temperature=1.0)
        for more in (0.0, 1e-3)
    )

    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_full(dtype: torch.dtype) -> None:
    ids, logprobs = topk_of(random_logits(1), 4)
    student = random_logits(0).to(dtype)
    expected = topk_kl_sum(student.float(), ids, logprobs, TARGETS, vocab_size=VOCABULARY, temperature=1.0)

    leaf = student.clone().requires_grad_()
    value = topk_kl_sum(leaf, ids, logprobs, TARGETS, vocab_size=VOCABULARY, temperature=1.0)
    value.backward()

    assert expected == value
    assert leaf.grad is not None
    assert dtype == leaf.grad.dtype


@pytest.mark.parametrize("distance", [0.5, 2.0], ids=["near its end", "early"])
def test_on_a_peaked_distribution_the_bucket_keeps_the_direction_of_the_gradient(distance: float) -> None:
    """The largest 32 of 8,192 entries that fall off by a power law, softened by 2 and rounded to 16 bits."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, temperature = 8192, 2.0
    ranks = torch.stack([torch.randperm(vocabulary, generator=generator) for _ in range(64)]) + 1.0
    teacher = (-2.0 * ranks.log()).view(8, 8, vocabulary)
    student = teacher + distance * torch.randn(teacher.shape, generator=generator)
    targets = torch.zeros(8, 8, dtype=torch.long)
    largest = functional.log_softmax(teacher / temperature, dim=-1).topk(32, dim=-1)
    ids, logprobs = largest.indices, largest.values.half().float()

    def missing_as_zero(logits: Tensor) -> Tensor:
        given = functional.log_softmax(logits / temperature, dim=-1).gather(-1, ids)
        wanted = logprobs - logprobs.logsumexp(dim=-1, keepdim=True)
        return (wanted.exp() * (wanted - given)).sum() * temperature**2

    options = {"vocab_size": vocabulary, "temperature": temperature}
    _, whole = value_and_gradient(lambda logits: forward_kl_sum(logits, teacher, targets, **options), student)  # type: ignore[arg-type]
    _, bucket = value_and_gradient(lambda logits: topk_kl_sum(logits, ids, logprobs, targets, **options), student)  # type: ignore[arg-type]
    _, zero = value_and_gradient(missing_as_zero, student)

    with_bucket, without = (
        functional.cosine_similarity(each.flatten(), whole.flatten(), dim=0) for each in (bucket, zero)
    )
    kept = logprobs.exp().sum(dim=-1).mean()
    print(f"kept {kept:.3f} of the mass; cosine with the whole gradient {with_bucket:.4f}, as zero {without:.4f}")
    assert with_bucket > without
    assert with_bucket > 0.9
