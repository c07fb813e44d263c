import pytest

from crashproof.distillation.evaluation.answer_scores import answer_f1, is_exact_answer


@pytest.mark.parametrize(
    "answer, expected, f1",
    [
        ("Order 17 is ready.", "Order 17 is ready.", 1.0),
        ("the order 17 is READY", "Order 17 is ready.", 1.0),
        ("Order 18 is ready.", "Order 17 is ready.", 0.75),
        ("ready ready ready", "ready", 0.5),
        ("nothing of it", "Order 17", 0.0),
        ("", "Order 17", 0.0),
        ("", "", 1.0),
        ("the", "a", 1.0),
    ],
    ids=["equal", "case", "a word differs", "said too often", "disjoint", "silence", "both empty", "articles"],
)
def test_words_are_compared_with_words(answer: str, expected: str, f1: float) -> None:
    assert f1 == pytest.approx(answer_f1(answer, expected))


def test_an_exact_answer_has_the_same_words_in_the_same_order() -> None:
    assert is_exact_answer("The 3 chairs, please", "3 chairs please!")
    assert not is_exact_answer("chairs 3", "3 chairs")
