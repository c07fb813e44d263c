import json

import pytest

from crashproof.distillation.data.restated_spans import restated_spans

RESULT = json.dumps(
    {
        "hotel": {"name": "The Old Mill Inn", "price": 1200.5, "stars": 4},
        "notes": ["free for guests who stay more than three nights", True, None],
        "from": "2026-05-03",
    }
)


def said(answer: str, *results: str, min_words: int = 3) -> list[str]:
    return [answer[start:end] for start, end in restated_spans(answer, results or [RESULT], min_words=min_words)]


@pytest.mark.parametrize(
    "answer, expected",
    [
        pytest.param("I found The Old Mill Inn.", ["The Old Mill Inn"], id="a-whole-value"),
        pytest.param("I found the  old-mill\ninn.", ["the  old-mill\ninn"], id="case-and-space"),
        pytest.param("It costs 1,200.50 a night.", ["1,200.50"], id="a-number-written-otherwise"),
        pytest.param("From 2026-05-03 on.", ["2026-05-03"], id="a-date"),
        pytest.param("It has 4 stars.", ["4"], id="a-number"),
        pytest.param("It has 40 stars, or 14.", [], id="no-part-of-a-number"),
        pytest.param("The inn is old.", [], id="words-out-of-order"),
        pytest.param("It is free for guests.", ["free for guests"], id="a-long-part"),
        pytest.param("It is free for you.", [], id="a-short-part"),
        pytest.param("True or null or None", [], id="truth-values"),
        pytest.param("", [], id="nothing-said"),
    ],
)
def test_what_restates_a_value_is_found(answer: str, expected: list[str]) -> None:
    assert expected == said(answer)


def test_the_shortest_part_can_be_chosen() -> None:
    assert ["free for"] == said("It is free for you.", min_words=2)


def test_the_longest_run_wins_over_a_shorter_one() -> None:
    assert ["New York City"] == said("In New York City.", json.dumps(["York", "New York City", "New York"]))


def test_a_result_that_is_no_json_is_one_value() -> None:
    assert ["closed on all Mondays"] == said("It is closed on all Mondays.", "We are closed on all Mondays!")


def test_a_short_word_says_nothing_by_itself() -> None:
    assert [] == said("It is in a box.", json.dumps(["is", "a"]))


def test_runs_of_several_results_are_found_in_the_order_of_the_answer() -> None:
    assert ["Oslo", "12"] == said("Oslo: 12 degrees.", '{"degrees": 12}', '{"city": "Oslo"}')


def test_a_result_without_values_restates_nothing() -> None:
    assert [] == said("All done.", "{}", "[]", "null", "...")
