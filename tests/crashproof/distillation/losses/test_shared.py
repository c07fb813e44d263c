from __future__ import annotations

import pytest
import torch

from crashproof.distillation.losses.divergences import forward_kl_rows
from crashproof.distillation.losses.shared import SharedIds, shared_kl_rows
from crashproof.distillation.text.shared_tokens import SharedTokens
from crashproof.distillation.text.token_bytes import TokenBytes

PLAIN = [TokenBytes(content=bytes([number])) for number in range(97, 101)]
END = TokenBytes(content=b"<end>", is_special=True)
FIN = TokenBytes(content=b"<fin>", is_special=True)


def shared(teacher: list[TokenBytes], student: list[TokenBytes]) -> SharedIds:
    return SharedIds.of(SharedTokens.of(teacher, student))


def rows(width: int, seed: int) -> torch.Tensor:
    return torch.randn(3, width, generator=torch.Generator().manual_seed(seed))


def test_over_the_same_vocabulary_it_is_the_divergence() -> None:
    student, teacher = rows(5, 0), rows(5, 1)

    expected = forward_kl_rows(student, teacher, vocab_size=5, temperature=2.0, scale=4.0)

    torch.testing.assert_close(
        expected,
        shared_kl_rows(student, teacher, shared([*PLAIN, END], [*PLAIN, END]), temperature=2.0, scale=4.0),
    )


def test_a_renamed_token_is_compared_with_its_counterpart() -> None:
    student, teacher = rows(5, 0), rows(5, 1)

    expected = forward_kl_rows(student, teacher, vocab_size=5, temperature=1.0)

    torch.testing.assert_close(
        expected, shared_kl_rows(student, teacher, shared([*PLAIN, END], [*PLAIN, FIN]), temperature=1.0)
    )


@pytest.mark.parametrize("extra_of", ["teacher", "student"])
def test_an_extra_token_of_one_is_left_out(extra_of: str) -> None:
    long, short = [*PLAIN, END], list(PLAIN)
    ids = shared(long, short) if extra_of == "teacher" else shared(short, long)
    student, teacher = rows(5, 0).requires_grad_(), rows(5, 1)

    values = shared_kl_rows(student, teacher, ids, temperature=1.0)
    values.sum().backward()

    torch.testing.assert_close(forward_kl_rows(student, teacher, vocab_size=4, temperature=1.0), values)
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
    assert [0.0] * 3 == student.grad[:, 4].tolist()


def test_what_is_left_out_is_said_in_words() -> None:
    tokens = SharedTokens.of([*PLAIN, END, *[END] * 4], [*PLAIN, FIN])

    assert not tokens.suffices
    assert str(tokens).startswith("4 of 9 token ids are shared, and token 4 is the special token <end> there and")
    assert str(tokens).endswith("; and 2 more")
