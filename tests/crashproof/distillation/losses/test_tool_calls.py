import math

import numpy as np
import pytest
import torch
from torch import Tensor

from crashproof.distillation.losses.tool_calls import allowed_entries, json_validity_rows, name_choice_rows

VOCABULARY = 70


def packed(is_allowed: Tensor) -> Tensor:
    """(rows, vocabulary) of bool as the words of a mask."""
    words = math.ceil(is_allowed.shape[1] / 32)
    padded = np.zeros((len(is_allowed), words * 32), dtype=bool)
    padded[:, : is_allowed.shape[1]] = is_allowed.numpy()
    return torch.from_numpy(np.packbits(padded, axis=1, bitorder="little").view("<i4").astype(np.int32))


def drawn_logits(rows: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return 3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=dtype)


def drawn_masks(rows: int = 5) -> Tensor:
    is_allowed = torch.rand(rows, VOCABULARY, generator=torch.Generator().manual_seed(1)) < 0.3
    is_allowed[:, 3] = True
    return is_allowed


def test_a_mask_is_read_as_it_was_packed() -> None:
    is_allowed = drawn_masks()

    assert torch.equal(is_allowed, allowed_entries(packed(is_allowed), VOCABULARY))


def test_what_a_mask_does_not_reach_is_not_allowed() -> None:
    found = allowed_entries(torch.full((1, 1), -1, dtype=torch.int32), 40)

    assert [True] * 32 + [False] * 8 == found[0].tolist()


def test_json_validity_is_minus_the_log_of_the_allowed_mass() -> None:
    logits, is_allowed = drawn_logits(), drawn_masks()

    mass = torch.where(is_allowed, logits.softmax(dim=-1), 0.0).sum(dim=-1)

    torch.testing.assert_close(json_validity_rows(logits, packed(is_allowed)), -mass.log())


def test_json_validity_has_the_gradient_of_its_differences() -> None:
    masks = packed(drawn_masks())
    logits = drawn_logits().requires_grad_()

    assert torch.autograd.gradcheck(lambda given: json_validity_rows(given, masks), (logits,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_json_validity_is_zero_and_pulls_nowhere_where_all_is_allowed(dtype: torch.dtype) -> None:
    logits = (1e3 * drawn_logits(dtype=dtype)).requires_grad_()

    values = json_validity_rows(logits, packed(torch.ones(5, VOCABULARY, dtype=torch.bool)))
    values.sum().backward()

    assert [0.0] * 5 == values.tolist()
    assert logits.grad is not None
    assert 0.0 == logits.grad.abs().max().item()


def test_json_validity_moves_mass_from_what_is_forbidden_to_what_is_allowed() -> None:
    logits, is_allowed = drawn_logits().requires_grad_(), drawn_masks()

    json_validity_rows(logits, packed(is_allowed)).sum().backward()

    assert logits.grad is not None
    assert (logits.grad[is_allowed] < 0).all()
    assert (logits.grad[~is_allowed] > 0).all()
    torch.testing.assert_close(logits.grad.sum(dim=-1), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("gap", [-90.0, -40.0, 40.0, 1e4])
def test_json_validity_loses_neither_a_tiny_mass_nor_a_huge_one_to_rounding(gap: float) -> None:
    logits = torch.zeros(1, VOCABULARY, dtype=torch.float32)
    logits[0, 0] = gap
    logits[0, 2:] = -1e5
    is_allowed = torch.arange(VOCABULARY)[None] == 1
    logits.requires_grad_()

    value = json_validity_rows(logits, packed(is_allowed))
    value.sum().backward()

    expected = math.log1p(math.exp(gap)) if gap < 0 else gap
    assert expected == pytest.approx(value.item(), rel=1e-6)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    # The forbidden entry's probability, however small.
    assert 1 / (1 + math.exp(-gap)) == pytest.approx(logits.grad[0, 0].item(), rel=1e-6)


def test_padding_beyond_the_tokenizer_is_not_allowed() -> None:
    logits, is_allowed = drawn_logits(), drawn_masks()
    is_allowed[:, 64:] = False

    narrow = json_validity_rows(logits, packed(is_allowed[:, :64]))

    torch.testing.assert_close(json_validity_rows(logits, packed(is_allowed)), narrow)


TARGETS = torch.tensor([4, 4, 9, 0, 69])
CHOICES = torch.tensor([[4, 7, 9], [2, 4, -1], [9, -1, -1], [0, 1, 69], [3, 69, -1]])


def test_the_choice_is_a_cross_entropy_among_what_was_offered() -> None:
    logits = drawn_logits()

    expected = [
        -logits[row, [each for each in ids if each >= 0]].log_softmax(dim=0)[ids.index(target)]
        for row, (ids, target) in enumerate(zip(CHOICES.tolist(), TARGETS.tolist(), strict=True))
    ]

    torch.testing.assert_close(name_choice_rows(logits, TARGETS, CHOICES), torch.stack(expected))


def test_the_choice_has_the_gradient_of_its_differences() -> None:
    logits = drawn_logits().requires_grad_()

    assert torch.autograd.gradcheck(lambda given: name_choice_rows(given, TARGETS, CHOICES), (logits,))


def test_where_one_name_is_left_there_is_nothing_to_choose() -> None:
    logits = drawn_logits().requires_grad_()

    values = name_choice_rows(logits, TARGETS, CHOICES)
    values[2].backward()

    assert 0.0 == values[2].item()
    assert logits.grad is not None
    assert 0.0 == logits.grad.abs().max().item()


def test_a_likelier_distractor_raises_the_choice_and_other_text_does_not() -> None:
    logits = drawn_logits()
    distracted, elsewhere = logits.clone(), logits.clone()
    distracted[0, 7] += 2
    elsewhere[0, 30] += 20

    before, after, same = (name_choice_rows(each, TARGETS, CHOICES)[0] for each in (logits, distracted, elsewhere))

    assert after > before
    assert torch.equal(before, same)


def test_the_choice_pulls_at_offered_names_alone() -> None:
    logits = drawn_logits().requires_grad_()

    name_choice_rows(logits, TARGETS, CHOICES)[0].backward()

    assert logits.grad is not None
    assert {4, 7, 9} == set(logits.grad[0].nonzero().flatten().tolist())
    assert logits.grad[0, 4] < 0
