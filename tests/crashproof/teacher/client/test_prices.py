from __future__ import annotations

import decimal
from datetime import date
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashproof.errors import ConfigError, UnknownPrice
from crashproof.formatting import as_dollars_text
from crashproof.teacher.client.prices import UNPRICED, Price, PriceTable
from crashproof.teacher.replies.usage import Usage

MINI = Price(
    input=Decimal("0.15"),
    cached_input=Decimal("0.075"),
    output=Decimal("0.60"),
    reasoning=Decimal("0.90"),
    batch_share=Decimal("0.5"),
    max_output_tokens=100,
)
ASKED = {"model": "m", "messages": [{"role": "user", "content": "Grüße 😀"}], "max_tokens": 10}

dollars = st.integers(0, 10**9).map(lambda millionths: Decimal(millionths).scaleb(-6))
prices = st.builds(Price, input=dollars, cached_input=dollars, output=dollars, reasoning=dollars)
counts = st.integers(0, 10**12)
bodies = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.just("user"), "content": st.text(max_size=20)}), min_size=1, max_size=3
        ),
        "max_tokens": st.integers(1, 10**6),
    },
    optional={"n": st.integers(1, 8), "tools": st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=3)))},
)


@st.composite
def usages(draw, most_prompt_tokens=10**12, most_completion_tokens=10**12):
    prompt_tokens = draw(st.integers(0, most_prompt_tokens))
    completion_tokens = draw(st.integers(0, most_completion_tokens))
    return Usage(
        prompt_tokens=prompt_tokens,
        cached_tokens=draw(st.integers(0, prompt_tokens)),
        completion_tokens=completion_tokens,
        reasoning_tokens=draw(st.integers(0, completion_tokens)),
    )


@pytest.fixture
def write(tmp_path):
    def write_table(models: str, header: str = "as_of: 2025-01-31") -> Path:
        path = tmp_path / "prices.yaml"
        path.write_text(f"{header}\nmodels:\n  {models}\n")
        return path

    return write_table


def test_the_cost_of_an_answer_is_the_sum_of_its_parts():
    usage = Usage(prompt_tokens=1000, cached_tokens=400, completion_tokens=50, reasoning_tokens=20)

    cost = MINI.cost(usage)

    assert (
        Decimal("0.000156")
        == cost
        == (600 * Decimal("0.15") + 400 * Decimal("0.075") + 30 * Decimal("0.60") + 20 * Decimal("0.90")) / 1_000_000
    )


@given(prices, usages())
def test_costs_are_exact_whatever_the_precision_of_the_caller(price, usage):
    with decimal.localcontext(prec=3):
        cost = price.cost(usage)

    with decimal.localcontext(prec=60):
        uncached, visible = (
            usage.prompt_tokens - usage.cached_tokens,
            usage.completion_tokens - usage.reasoning_tokens,
        )
        assert cost * 10**6 == (
            uncached * price.input
            + usage.cached_tokens * price.cached_input
            + visible * price.output
            + usage.reasoning_tokens * price.reasoning
        )


@given(prices, usages(), usages())
def test_two_answers_cost_what_their_tokens_cost_together(price, one, other):
    together = Usage(
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
        reasoning_tokens=one.reasoning_tokens + other.reasoning_tokens,
    )

    assert price.cost(together) == price.cost(one) + price.cost(other)


def test_a_cost_is_written_without_idle_zeros():
    assert ["0.00015", "0"] == [
        str(MINI.cost(Usage(prompt_tokens=tokens, completion_tokens=0))) for tokens in (1000, 0)
    ]


def test_a_batch_costs_its_share():
    usage = Usage(prompt_tokens=1000, cached_tokens=400, completion_tokens=50, reasoning_tokens=20)

    assert MINI.cost(usage) / 2 == MINI.in_batch().cost(usage)
    assert MINI.in_batch() == MINI.in_batch().in_batch()


@given(st.data(), prices, bodies)
def test_no_answer_within_its_bounds_costs_more_than_the_worst_case(data, price, body):
    num_bytes = len(msgspec.json.encode(body))
    usage = data.draw(usages(num_bytes, body["max_tokens"] * body.get("n", 1)))

    assert price.cost(usage) <= price.worst_case(body)


def test_the_worst_case_counts_each_byte_each_message_and_the_longest_answer():
    num_bytes = len(msgspec.json.encode(ASKED))

    worst = MINI.worst_case(ASKED)

    assert (num_bytes + 16 + 64) * Decimal("0.15") + 10 * Decimal("0.90") == worst * 10**6


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"messages": ASKED["messages"] * 2}, id="messages"),
        pytest.param({"tools": [{"type": "function", "function": {"name": "f"}}]}, id="tools"),
        pytest.param({"response_format": {"type": "json_object"}}, id="response-format"),
        pytest.param({"max_tokens": 11}, id="max_tokens"),
        pytest.param({"max_completion_tokens": 11}, id="max_completion_tokens"),
        pytest.param({"n": 2}, id="n"),
    ],
)
def test_more_of_anything_raises_the_worst_case(more):
    assert MINI.worst_case(ASKED) < MINI.worst_case(ASKED | more)


@pytest.mark.parametrize(
    "body, expected",
    [
        pytest.param({"max_tokens": 10}, 10, id="max_tokens"),
        pytest.param({"max_completion_tokens": 10}, 10, id="max_completion_tokens"),
        pytest.param({"max_tokens": 10, "max_completion_tokens": 20}, 20, id="both"),
        pytest.param({"max_tokens": 10, "n": 3}, 30, id="several-answers"),
        pytest.param({"max_tokens": None, "n": None}, 100, id="null-is-absent"),
        pytest.param({}, 100, id="the-longest-of-the-table"),
    ],
)
def test_the_longest_answer_is_what_request_or_table_say(body, expected):
    assert expected == MINI.most_completion_tokens(body)


def test_nothing_says_how_long_an_unpriced_answer_is():
    assert UNPRICED.most_completion_tokens({}) is None


@pytest.mark.parametrize("count", [0, -1, True, 2.0, "10", [10]], ids=repr)
@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens", "n"])
def test_a_count_that_is_none_is_an_error(key, count):
    with pytest.raises(ConfigError, match=f"{key} must be a whole number above 0"):
        MINI.worst_case(ASKED | {key: count})


def user(*content):
    return {"messages": [{"role": "user", "content": list(content)}], "max_tokens": 10}


@pytest.mark.parametrize(
    "body, expected",
    [
        pytest.param(user({"type": "text", "text": "a"}, {"type": "image_url"}), "'image_url'", id="image"),
        pytest.param(user({"type": "input_audio"}), "'input_audio'", id="audio"),
        pytest.param(user({"type": "file"}), "'file'", id="file"),
        pytest.param(user("text"), "'str'", id="part-without-a-type"),
        pytest.param({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "'audio'", id="earlier-audio"),
        pytest.param({"messages": ["hello"]}, "'str'", id="message-that-is-none"),
        pytest.param(ASKED | {"audio": {"voice": "ash"}}, "'audio'", id="spoken-answer"),
        pytest.param(ASKED | {"web_search_options": {}}, "'web_search_options'", id="web-search"),
        pytest.param(ASKED | {"prediction": {"type": "content"}}, "'prediction'", id="prediction"),
        pytest.param(ASKED | {"service_tier": "priority"}, "'priority' has another price", id="dearer-tier"),
        pytest.param({"prompt": "hello", "max_tokens": 5}, "no list of messages", id="no-chat"),
    ],
)
def test_what_is_not_priced_by_its_text_has_no_bound(body, expected):
    with pytest.raises(ConfigError, match=expected):
        MINI.worst_case(body)


def test_a_request_of_unknown_length_says_what_to_set():
    price = Price(input=Decimal(1), cached_input=Decimal(1), output=Decimal(1), reasoning=Decimal(1))

    with pytest.raises(ConfigError, match="Set max_tokens"):
        price.worst_case({"messages": ASKED["messages"]})


def test_parts_of_text_are_bounded():
    assert MINI.worst_case(user({"type": "text", "text": "a"})) > 0


def test_without_prices_every_request_is_free_and_bounded():
    assert UNPRICED.is_free
    assert 0 == UNPRICED.worst_case(user({"type": "image_url"}))
    assert 0 == UNPRICED.cost(Usage(prompt_tokens=5, completion_tokens=5))
    assert not MINI.is_free


@given(bodies)
def test_a_prompt_that_is_within_the_worst_case_is_plausible(body):
    token = Price(input=Decimal(1), cached_input=Decimal(1), output=Decimal(0), reasoning=Decimal(0))

    assert int(token.worst_case(body) * 10**6) <= token.most_prompt_tokens(body)


def test_a_prompt_with_an_image_has_no_bound():
    image = {"type": "image_url", "image_url": {"url": "http://images.example/1"}}

    assert MINI.most_prompt_tokens({"messages": [{"role": "user", "content": [image]}]}) is None


def test_the_shipped_table_is_read_and_says_of_when_it_is():
    table = PriceTable.load()

    assert date(2025, 1, 1) < table.as_of
    assert "OpenAI" in table.source
    assert [] == [model for model, price in table.prices.items() if price.max_output_tokens is None]
    assert Decimal("0.15") == table.of("gpt-4o-mini").input


def test_what_an_entry_leaves_out_follows_from_the_rest(write):
    price = PriceTable.load(write("m: {input: 0.1, output: 3}")).of("m")

    assert (Decimal("0.1"), Decimal(3), Decimal(1), None) == (
        price.cached_input,
        price.reasoning,
        price.batch_share,
        price.max_output_tokens,
    )


def test_what_an_entry_says_is_taken(write):
    entry = "{input: 0.15, cached_input: 0.075, output: 0.60, reasoning: 0.9, batch_share: 0.5}"

    assert MINI.cost(Usage(prompt_tokens=9, cached_tokens=3, completion_tokens=7, reasoning_tokens=1)) == (
        PriceTable.load(write(f"m: {entry}"))
        .of("m")
        .cost(Usage(prompt_tokens=9, cached_tokens=3, completion_tokens=7, reasoning_tokens=1))
    )


@pytest.mark.parametrize(
    "model, expected",
    [
        pytest.param("gpt-4o", "2.50", id="exact"),
        pytest.param("gpt-4o-2024-08-06", "2.50", id="snapshot"),
        pytest.param("gpt-4o-2024-05-13", "5.00", id="snapshot-with-an-entry"),
        pytest.param("gpt-4o-mini-2024-07-18", "0.15", id="snapshot-of-the-longer-name"),
    ],
)
def test_a_snapshot_goes_by_the_name_without_its_date(model, expected):
    assert Decimal(expected) == PriceTable.load().of(model).input


@pytest.mark.parametrize(
    "model",
    ["gpt-4o-tiny", "gpt-4", "ft:gpt-4o:me", "gpt-4o-2024", "gpt-4o-2024-08-06-x", "GPT-4o", "", "-2024-08-06"],
)
def test_a_model_without_a_price_is_an_error_that_says_how_to_add_one(model):
    table = PriceTable.load()

    with pytest.raises(UnknownPrice) as caught:
        table.of(model)

    assert repr(model) in caught.value.message
    assert str(table.path) in caught.value.message
    assert f"`{model}: {{input:" in caught.value.hint


@pytest.mark.parametrize(
    "entry, expected",
    [
        pytest.param("{input: -1, output: 1}", "input must be a number of dollars", id="negative"),
        pytest.param("{input: .nan, output: 1}", "decimal", id="yaml-nan"),
        pytest.param("{input: NaN, output: 1}", "input must be a number of dollars", id="nan"),
        pytest.param("{input: Infinity, output: 1}", "input must be a number of dollars", id="infinity"),
        pytest.param("{input: 0.1234567, output: 1}", "at most six decimals", id="seven-decimals"),
        pytest.param("{input: 1e99, output: 1}", "six decimals", id="more-than-there-is"),
        pytest.param(
            "{input: 0.000001, output: 1, batch_share: 0.5}", "in a batch too", id="seven-decimals-in-a-batch"
        ),
        pytest.param("{input: 1, output: 1, batch_share: 50}", "batch_share must be", id="discount-in-percent"),
        pytest.param("{input: 1, output: 1, batch_share: nan}", "batch_share must be", id="discount-nan"),
        pytest.param("{input: 1, output: 1, max_output_tokens: 0}", "max_output_tokens must be", id="no-output"),
        pytest.param("{input: 1, output: 1, max_output_tokens: 1.5}", "max_output_tokens", id="half-a-token"),
        pytest.param("{input: free, output: 1}", "decimal", id="text"),
        pytest.param("{input: 1}", "output", id="output-is-missing"),
        pytest.param("{input: 1, output: 1, cached: 1}", "cached", id="unknown-key"),
        pytest.param("5", "object", id="no-mapping"),
    ],
)
def test_an_entry_that_is_wrong_names_file_and_model(write, entry, expected):
    path = write(f"my-model: {entry}")

    with pytest.raises(ConfigError, match=expected) as caught:
        PriceTable.load(path)

    assert f"The price of my-model in {path}" in caught.value.message
    assert caught.value.hint


def test_a_model_that_is_written_twice_is_an_error(write):
    path = write("m: {input: 1, output: 1}\n  m: {input: 2, output: 2}")

    with pytest.raises(ConfigError, match="duplicate key 'm'"):
        PriceTable.load(path)


@pytest.mark.parametrize(
    "header, expected",
    [
        pytest.param("source: me", "as_of", id="no-date"),
        pytest.param("as_of: yesterday", "as_of", id="no-such-date"),
        pytest.param("as_of: 2025-01-01\nprices: {}", "prices", id="unknown-key"),
        pytest.param("as_of: [", "not valid YAML", id="no-yaml"),
    ],
)
def test_a_table_that_is_wrong_names_the_file(write, header, expected):
    path = write("m: {input: 1, output: 1}", header)

    with pytest.raises(ConfigError, match=expected) as caught:
        PriceTable.load(path)

    assert str(path) in caught.value.message


def test_a_table_that_is_missing_names_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        PriceTable.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "amount, expected",
    [
        ("0", "$0.00"),
        ("0.00", "$0.00"),
        ("1234.5", "$1,234.50"),
        ("1", "$1.00"),
        ("0.5", "$0.50"),
        ("0.999", "$1.00"),
        ("0.0012", "$0.0012"),
        ("0.001234", "$0.0012"),
        ("0.00000015", "$0.00000015"),
        ("-3.2", "-$3.20"),
    ],
)
def test_money_is_shown_in_the_words_of_people(amount, expected):
    assert expected == as_dollars_text(Decimal(amount))


@given(st.integers(1, 10**18))
def test_money_that_is_there_is_never_shown_as_none(picodollars):
    assert set(as_dollars_text(Decimal(picodollars).scaleb(-12))) & set("123456789")
