"""What every store of teacher answers promises: the run's own, a shared file, a shared server."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from response_stores import CENT, answered, granted, intent, keep, key_of

from crashproof.answers.store import Busy, Granted, Intent, Lost, OverBudget, Refused
from crashproof.records.requests import AnswerRecord


def test_a_kept_answer_is_served_and_counted_as_saved(store):
    keep(store, "a", "b", cost=Decimal("0.25"))

    assert {"text": "about a"} == store.serve(key_of("a")).response
    spending = store.spending()
    assert (2, Decimal("0.5"), 1, Decimal("0.25")) == (
        spending.answers,
        spending.spent,
        spending.answers_served,
        spending.saved,
    )


def test_no_store_says_that_it_lacks_an_answer_that_it_has(stores):
    store = stores.open()
    keep(store, "a")
    assert not store.lacks(key_of("a"))

    again = stores.open()
    assert not again.lacks(key_of("a"))
    assert again.read(key_of("a")) is not None
    assert not again.lacks(key_of("a"))


def test_an_answer_that_is_only_read_is_not_counted(store):
    keep(store, "a")

    assert {"text": "about a"} == store.read(key_of("a")).response
    assert 0 == store.spending().answers_served


def test_many_answers_are_served_or_read_in_the_order_of_their_keys(store):
    keep(store, "a", "b", cost=CENT)
    keys = [key_of("b"), key_of("x"), key_of("a"), key_of("b")]

    read = list(store.read_all(keys))
    before = store.spending().answers_served
    served = store.serve_all(keys)

    texts = [None if each is None else each.response["text"] for each in served]
    assert ["about b", None, "about a", "about b"] == texts
    assert read == served
    assert (0, 3, 3 * CENT) == (before, store.spending().answers_served, store.spending().saved)
    assert ([], []) == (store.serve_all([]), list(store.read_all([])))


def test_of_many_answers_a_damaged_one_is_missing_and_is_set_aside(stores, caplog):
    store = stores.open()
    keep(store, "a", "b", "c")
    stores.flip(key_of("b"), 0.5, 3)
    found = list(store.read_all([key_of(each) for each in "abc"]))

    assert ["about a", None, "about c"] == [None if each is None else each.response["text"] for each in found]
    assert "is damaged" in caplog.text
    assert stores.set_aside()


def test_an_unknown_key_has_no_answer(store):
    assert (None, None) == (store.serve(key_of("a")), store.read("0" * 64))


def test_nothing_asked_is_nothing_said(store):
    store.finish([])

    assert [] == store.begin([], budget=CENT)


def test_an_answer_comes_back_to_the_letter(store):
    response = {"choices": [{"logprob": float("-inf"), "text": "zwölf\u2028\0"}], "n": 2**60, "x": 1e-300}
    request = granted(store, "a")
    store.finish([answered(request, response=response, raw="{…", problem="no JSON")])

    found = store.read(key_of("a"))
    assert response == found.response
    assert (request.request.as_record(), request.request_id) == (found.request, found.request_id)
    assert ("{…", "no JSON") == (found.raw, found.problem)


def test_what_is_kept_is_given_instead_of_a_permission(store):
    keep(store, "a")

    first, second = store.begin([intent("a"), intent("b")], budget=None)

    assert {"text": "about a"} == first.response
    assert isinstance(second, Granted)
    assert 1 == store.spending().answers_served


def test_of_equal_requests_one_is_sent(store):
    first, second = store.begin([intent("a"), intent("a")], budget=None)
    (third,) = store.begin([intent("a")], budget=None)

    assert isinstance(first, Granted)
    assert [True, True] == [isinstance(each, Busy) and 0 < each.seconds <= 0.5 for each in (second, third)]
    assert CENT == store.spending().reserved


def test_samples_and_parameters_make_requests_of_their_own(store):
    asked = [intent("a"), intent("a", temperature=1), intent("a", temperature=0.5), intent("b")]

    assert [Granted] * 4 == [type(verdict) for verdict in store.begin(asked, budget=None)]


def test_a_refused_request_costs_nothing_and_may_be_sent_again_at_once(store):
    store.finish([Refused(granted=granted(store, "a"), reason="HTTP 429")])

    spending = store.spending()
    assert (0, 0, 0) == (spending.committed, spending.requests_in_doubt, spending.answers)
    assert granted(store, "a")


def test_a_lost_request_stays_in_doubt_at_its_most_and_may_be_sent_again(store):
    store.finish([Lost(granted=granted(store, "a"), reason="timeout")])
    keep(store, "a", cost=Decimal("0.004"))

    spending = store.spending()
    assert (1, CENT, Decimal("0.004"), Decimal("0.014")) == (
        spending.requests_in_doubt,
        spending.in_doubt,
        spending.spent,
        spending.committed,
    )


def test_the_most_is_reserved_before_and_the_cost_paid_after(store):
    budget = 2 * CENT
    first = granted(store, "a", budget=budget)
    second = granted(store, "b", budget=budget)
    (third,) = store.begin([intent("c")], budget=budget)
    store.finish([answered(first, CENT / 4), Refused(granted=second, reason="no")])

    assert isinstance(third, OverBudget)
    assert third.may_change
    assert (2 * CENT, 0) == (third.spending.reserved, third.spending.spent)
    assert granted(store, "c", budget=budget)
    assert (CENT / 4, CENT) == (store.spending().spent, store.spending().reserved)


def test_a_batch_is_granted_as_far_as_the_money_goes(store):
    verdicts = store.begin([intent("a"), intent("b", most=5 * CENT), intent("c"), intent("d")], budget=2 * CENT)

    assert [Granted, OverBudget, Granted, OverBudget] == [type(verdict) for verdict in verdicts]
    assert 2 * CENT == store.spending().reserved


def test_without_anything_under_way_a_refusal_for_money_is_final(store):
    keep(store, "a", cost=CENT)
    (verdict,) = store.begin([intent("b")], budget=CENT)

    assert isinstance(verdict, OverBudget)
    assert not verdict.may_change
    assert 0 == store.spending().reserved


def test_a_budget_of_exactly_what_it_takes_is_enough(store):
    keep(store, "a", cost=Decimal("0.1"))
    keep(store, "b", cost=Decimal("0.2"))

    assert granted(store, "c", most=Decimal("0.7"), budget=Decimal(1))


def test_an_answer_is_given_though_no_money_is_left(store):
    keep(store, "a", cost=CENT)
    (verdict,) = store.begin([intent("a")], budget=CENT)

    assert isinstance(verdict, AnswerRecord)


HOW = st.sampled_from(["answer", "refuse", "lose", "wait"])
ENDS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 1_000), HOW), max_size=12)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ENDS)
def test_what_is_committed_is_never_over_the_budget_and_always_the_sum(new_stores, ends):
    store = new_stores().open()
    budget = 4 * CENT
    spent = in_doubt = reserved = Decimal(0)
    for question, tenth_cents, how in ends:
        (verdict,) = store.begin([intent(question)], budget=budget)
        if not isinstance(verdict, Granted):
            assert not isinstance(verdict, OverBudget) or spent + in_doubt + reserved + CENT > budget
            continue
        if how == "answer":
            store.finish([answered(verdict, CENT * tenth_cents / 1_000)])
            spent += CENT * tenth_cents / 1_000
        elif how == "refuse":
            store.finish([Refused(granted=verdict, reason="no")])
        elif how == "lose":
            store.finish([Lost(granted=verdict, reason="timeout")])
            in_doubt += CENT
        else:
            reserved += CENT
        assert budget >= store.spending().committed

    spending = store.spending()
    assert (spent, in_doubt, reserved) == (spending.spent, spending.in_doubt, spending.reserved)


def test_an_answer_with_a_problem_is_paid_given_with_it_and_not_asked_again(store):
    store.finish([answered(granted(store, "a"), CENT, response={}, raw="<html>", problem="it is no JSON object")])
    (again,) = store.begin([intent("a")], budget=None)

    assert ("it is no JSON object", "<html>") == (again.problem, again.raw)
    spending = store.spending()
    assert (1, 1, CENT, CENT) == (spending.answers, spending.answers_bad, spending.spent, spending.wasted)


def test_an_answer_that_is_marked_is_wasted_once_and_kept(store):
    keep(store, "a", "b", cost=CENT)
    store.mark(key_of("a"), "the tool is not known")
    store.mark(key_of("a"), "the tool is not known")

    spending = store.spending()
    assert (2, 1, 2 * CENT, CENT) == (spending.answers, spending.answers_bad, spending.spent, spending.wasted)
    assert isinstance(store.begin([intent("a")], budget=None)[0], AnswerRecord)


def test_marking_what_is_not_there_or_useless_already_changes_nothing(store):
    store.finish([answered(granted(store, "a"), CENT, response={}, problem="it is empty")])
    before = store.spending()
    store.mark(key_of("a"), "the tool is not known")
    store.mark(key_of("b"), "the tool is not known")

    assert before == store.spending()


def again(question: object) -> Intent:
    return structs.replace(intent(question), replaces=True)


def test_an_answer_of_no_use_may_be_asked_for_once_more_and_the_newest_counts(stores):
    store = stores.open()
    store.finish([answered(granted(store, "a"), CENT, response={}, problem="it is empty")])
    keep(store, "b", cost=CENT)
    store.mark(key_of("b"), "the tool is not known")
    requests = store.begin([again("a"), again("b")], budget=None)
    store.finish([answered(request, 2 * CENT, response={"text": "better"}) for request in requests])
    spending = store.spending()
    store = stores.after_death_of(store)

    assert [{"text": "better"}] * 2 == [store.read(key_of(each)).response for each in "ab"]
    assert [AnswerRecord] * 2 == [type(verdict) for verdict in store.begin([intent("a"), intent("b")], budget=None)]
    assert (4, 2, 6 * CENT, 2 * CENT) == (
        spending.answers,
        spending.answers_bad,
        spending.spent,
        spending.wasted,
    )


def test_asking_again_that_brings_nothing_leaves_the_answer_that_is_there(store):
    keep(store, "a")
    store.mark(key_of("a"), "no use")
    (request,) = store.begin([again("a")], budget=None)
    store.finish([Lost(granted=request, reason="timeout")])

    assert {"text": "about a"} == store.read(key_of("a")).response


def test_what_is_not_there_can_be_asked_for_again(store):
    (request,) = store.begin([again("a")], budget=None)
    store.finish([answered(request)])

    assert {"text": "about a"} == store.read(key_of("a")).response


def test_an_end_that_is_told_twice_counts_once(store):
    ends = [answered(granted(store, "a")), Refused(granted=granted(store, "b"), reason="no")]
    ends.append(Lost(granted=granted(store, "c"), reason="timeout"))
    store.finish(ends)
    before = store.spending()
    store.finish(ends)

    assert before == store.spending()
    assert {"text": "about a"} == store.read(key_of("a")).response


def test_an_answer_that_is_kept_is_not_lost_by_giving_up(store):
    request = granted(store, "a")
    store.finish([answered(request)])
    store.finish([Lost(granted=request, reason="given up on")])

    assert 0 == store.spending().requests_in_doubt
    assert {"text": "about a"} == store.read(key_of("a")).response


def test_a_miss_is_explained_by_the_parameter_that_differs(store):
    keep(store, "a")

    assert 'messages[0].content ("b" here, "a" stored)' in store.why_miss(intent("b").request)
    assert "temperature (0.5 here, absent stored)" in store.why_miss(intent("a", temperature=0.5).request)
    assert "an answer to this exact request" in store.why_miss(intent("a").request)


def test_an_empty_store_says_that_it_knows_no_request(store):
    assert "The store holds no answer whose request is known." == store.why_miss(intent("a").request)


@pytest.mark.parametrize(
    "costs", [["0.1", "0.2", "0.3"], ["1e-7"] * 3, ["0.000000150000", "123456.789"]], ids=["tenths", "tiny", "both"]
)
def test_sums_are_exact(store, costs):
    for question, cost in enumerate(costs):
        keep(store, question, cost=Decimal(cost))

    assert sum(map(Decimal, costs)) == store.spending().spent
    assert [Decimal(cost) for cost in costs] == [store.read(key_of(each)).cost for each in range(len(costs))]


def test_all_is_there_after_the_process_died_and_what_was_under_way_is_in_doubt(stores):
    store = stores.open()
    keep(store, "a", "b", cost=CENT)
    store.finish([Lost(granted=granted(store, "c"), reason="timeout")])
    granted(store, "d")
    store = stores.after_death_of(store)

    spending = store.spending()
    assert (2, 2 * CENT, 2, 2 * CENT, 0) == (
        spending.answers,
        spending.spent,
        spending.requests_in_doubt,
        spending.in_doubt,
        spending.reserved,
    )
    assert [{"text": "about a"}, {"text": "about b"}] == [store.read(key_of(each)).response for each in "ab"]


def test_what_a_dead_process_had_begun_may_be_sent_again_and_counts_twice(stores):
    store = stores.open()
    granted(store, "a")
    store = stores.after_death_of(store)
    request = granted(store, "a", budget=2 * CENT)
    (refused,) = store.begin([intent("b")], budget=2 * CENT)
    store.finish([answered(request, CENT)])

    assert isinstance(refused, OverBudget)
    spending = store.spending()
    assert (1, CENT, CENT) == (spending.requests_in_doubt, spending.in_doubt, spending.spent)


def test_a_flipped_bit_is_never_given_and_is_set_aside_with_its_price_while_its_neighbours_stay(stores, caplog):
    store = stores.open()
    keep(store, *range(22), cost=CENT)
    chance = random.Random(7)
    damaged = {each: stores.flip(key_of(each), chance.random(), chance.randrange(8)) for each in range(1, 21)}
    found = {each: store.read(key_of(each)) for each in range(22)}

    assert [0, 21] == [each for each, answer in found.items() if answer is not None]
    assert [{"text": "about 0"}, {"text": "about 21"}] == [found[0].response, found[21].response]
    assert 20 == sum("is damaged" in message for message in caplog.messages)
    assert [] == [each for each, line in damaged.items() if line.strip() not in stores.set_aside()]
    assert 18 <= sum("($0.01 was paid for it)" in message for message in caplog.messages)


def test_an_answer_whose_bytes_were_damaged_is_asked_for_again(stores):
    store = stores.open()
    keep(store, "a", "b")
    stores.flip(key_of("a"), 0.5, 3)
    first, second = store.begin([intent("a"), intent("b")], budget=None)
    store.finish([answered(first)])

    assert isinstance(second, AnswerRecord)
    assert {"text": "about a"} == store.read(key_of("a")).response
    assert 3 == store.spending().answers


def in_threads(work: Callable[[int], object], count: int = 8) -> list:
    start = threading.Barrier(count)

    def begin(number: int) -> object:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def test_many_threads_send_each_request_once(store):
    def ask(number: int) -> int:
        questions = list(range(24))
        random.Random(number).shuffle(questions)
        num_sent = 0
        for some in (questions[start : start + 6] for start in range(0, 24, 6)):
            verdicts = store.begin([intent(question) for question in some], budget=None)
            sent = [verdict for verdict in verdicts if isinstance(verdict, Granted)]
            store.finish([answered(request) for request in sent])
            num_sent += len(sent)
        return num_sent

    assert 24 == sum(in_threads(ask))
    assert (24, 12 * CENT, 0) == (store.spending().answers, store.spending().spent, store.spending().reserved)


def test_many_threads_never_reserve_more_than_the_budget(store):
    def ask(number: int) -> int:
        verdicts = [store.begin([intent((number, each))], budget=10 * CENT)[0] for each in range(4)]
        assert 10 * CENT >= store.spending().committed
        return sum(isinstance(verdict, Granted) for verdict in verdicts)

    assert 10 == sum(in_threads(ask))
    assert 10 * CENT == store.spending().reserved
