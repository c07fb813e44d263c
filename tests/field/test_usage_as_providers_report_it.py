"""Usage in the names, the places and the spellings of every provider."""

from __future__ import annotations

from decimal import Decimal

import pytest
from paid_jobs import PaidJob, ScriptedBodies, answer_body
from teaching import http_server

PROMPT, CACHED, OUTPUT = (Decimal(price).scaleb(-6) for price in (20, 10, 120))
ONE = ("What is a keel?",)


def paid(body: object, tmp_path, *options: str) -> Decimal:
    with http_server(ScriptedBodies([body])) as url:
        summary = PaidJob(tmp_path, url, questions=ONE).run(*options)
    return Decimal(summary["cost"]["spent"])


@pytest.mark.parametrize(
    "usage, prompt, cached, output",
    [
        pytest.param(
            {"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623},
            20,
            0,
            603,
            id="thoughts in the total alone",
        ),
        pytest.param(
            {
                "prompt_tokens": 21,
                "completion_tokens": 0,
                "total_tokens": 81,
                "completion_tokens_details": {"reasoning_tokens": 60},
            },
            21,
            0,
            60,
            id="thoughts in the details alone",
        ),
        pytest.param(
            {
                "prompt_tokens": 32,
                "completion_tokens": 9,
                "total_tokens": 161,
                "completion_tokens_details": {"reasoning_tokens": 120},
            },
            32,
            0,
            129,
            id="thoughts in details and total",
        ),
        pytest.param(
            {"prompt_tokens": 32, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 120}},
            32,
            0,
            129,
            id="more thoughts than tokens",
        ),
        pytest.param(
            {
                "prompt_tokens": 32,
                "completion_tokens": 129,
                "total_tokens": 161,
                "completion_tokens_details": {"reasoning_tokens": 120},
            },
            32,
            0,
            129,
            id="thoughts within",
        ),
        pytest.param(
            {"prompt_tokens": 32, "completion_tokens": 129, "total_tokens": 161, "reasoning_tokens": 120},
            32,
            0,
            129,
            id="thoughts beside",
        ),
        pytest.param({"input_tokens": 20, "output_tokens": 10}, 20, 0, 10, id="Anthropic"),
        pytest.param(
            {
                "input_tokens": 20,
                "output_tokens": 10,
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": 0,
            },
            120,
            100,
            10,
            id="Anthropic, cached",
        ),
        pytest.param(
            {
                "input_tokens": 20,
                "output_tokens": 10,
                "cache_read_input_tokens": 0,
                "cache_creation_input_tokens": 50,
            },
            70,
            0,
            10,
            id="Anthropic, written to the cache",
        ),
        pytest.param(
            {
                "input_tokens": 120,
                "output_tokens": 10,
                "total_tokens": 130,
                "input_tokens_details": {"cached_tokens": 100},
            },
            120,
            100,
            10,
            id="OpenAI's responses",
        ),
        pytest.param(
            {"prompt_tokens": 120, "completion_tokens": 10, "total_tokens": 130, "cache_read_input_tokens": 100},
            120,
            100,
            10,
            id="LiteLLM",
        ),
        pytest.param(
            {"prompt_tokens": 20, "completion_tokens": 10, "cache_read_input_tokens": 100},
            120,
            100,
            10,
            id="more cached than asked",
        ),
        pytest.param(
            {"promptTokenCount": 20, "candidatesTokenCount": 10, "thoughtsTokenCount": 30, "totalTokenCount": 60},
            20,
            0,
            40,
            id="Gemini",
        ),
        pytest.param(
            {"promptTokenCount": 120, "candidatesTokenCount": 10, "cachedContentTokenCount": 100},
            120,
            100,
            10,
            id="Gemini, cached",
        ),
        pytest.param(
            {"prompt_token_count": 20, "candidates_token_count": 10, "thoughts_token_count": 30},
            20,
            0,
            40,
            id="Gemini in snake case",
        ),
        pytest.param({"inputTokens": 20, "outputTokens": 10, "totalTokens": 30}, 20, 0, 10, id="Bedrock"),
        pytest.param(
            {"prompt_tokens": 120, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 100}},
            120,
            100,
            10,
            id="OpenAI, cached",
        ),
        pytest.param(
            {
                "prompt_tokens": 120,
                "completion_tokens": 10,
                "prompt_cache_hit_tokens": 100,
                "prompt_cache_miss_tokens": 20,
            },
            120,
            100,
            10,
            id="DeepSeek, cached",
        ),
        pytest.param(
            {"prompt_tokens": 120, "completion_tokens": 10, "cached_tokens": 100}, 120, 100, 10, id="Moonshot, cached"
        ),
        pytest.param(
            {"prompt_tokens": "20", "completion_tokens": 10.0, "total_tokens": "30"}, 20, 0, 10, id="text and floats"
        ),
        pytest.param(
            {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 0}, 20, 0, 10, id="a total of nothing"
        ),
        pytest.param({"prompt_tokens": 20, "total_tokens": 30}, 20, 0, 10, id="no completion"),
        pytest.param({"completion_tokens": 10, "total_tokens": 30}, 20, 0, 10, id="no prompt"),
    ],
)
def test_the_bill_is_what_the_tokens_cost_however_they_are_named(tmp_path, usage, prompt, cached, output):
    bill = paid(answer_body(usage=usage), tmp_path, "--max-tokens", "1000")

    assert (prompt - cached) * PROMPT + cached * CACHED + output * OUTPUT == bill


@pytest.mark.parametrize(
    "places",
    [
        {"usage": None, "usageMetadata": {"promptTokenCount": 20, "candidatesTokenCount": 10}},
        {"usage": None, "choice": {"usage": {"prompt_tokens": 20, "completion_tokens": 10}}},
        {"usage": None, "x_groq": {"usage": {"prompt_tokens": 20, "completion_tokens": 10}}},
        {"usage": {}, "prompt_eval_count": 20, "eval_count": 10},
    ],
    ids=["Gemini", "Moonshot", "Groq", "Ollama"],
)
def test_the_usage_is_found_where_it_lies(tmp_path, places):
    assert 20 * PROMPT + 10 * OUTPUT == paid(answer_body(**places), tmp_path)


UNREADABLE = [
    pytest.param(None, id="null"),
    pytest.param({}, id="empty"),
    pytest.param([], id="list"),
    pytest.param("18 tokens", id="text"),
    pytest.param({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, id="zeros"),
    pytest.param({"prompt_tokens": -10, "completion_tokens": -8}, id="negative"),
    pytest.param({"prompt_tokens": None, "completion_tokens": None}, id="nulls"),
    pytest.param({"prompt_tokens": "NaN", "completion_tokens": 1e300}, id="no numbers"),
    pytest.param({"total_tokens": 18}, id="total alone"),
    pytest.param({"prompt_tokens": 10}, id="prompt alone"),
]


@pytest.mark.parametrize("usage", UNREADABLE)
@pytest.mark.parametrize("options", [(), ("--budget", "1.00")], ids=["without a budget", "with a budget"])
def test_what_cannot_be_read_is_estimated_from_text_and_said_once(tmp_path, caplog, usage, options):
    true_cost = 10 * PROMPT + 8 * OUTPUT
    with http_server(ScriptedBodies([answer_body(usage=usage)])) as url:
        summary = PaidJob(tmp_path, url).run(*options)

    bill = Decimal(summary["cost"]["spent"]) / 3
    assert true_cost / 3 < bill < 3 * true_cost
    assert 1 == sum("is estimated from its text" in message for message in caplog.messages)


def test_a_priced_model_is_never_said_to_have_cost_nothing(tmp_path):
    with http_server(ScriptedBodies([answer_body(usage=None)])) as url:
        told = PaidJob(tmp_path, url, options=()).told()

    assert "Paid: $0.00 " not in told
    assert "Paid: $" in told


def test_without_a_bound_requests_in_doubt_are_not_said_to_cost_nothing(tmp_path):
    half = answer_body("A keel is", choice={"finish_reason": "error"})
    with http_server(ScriptedBodies([half, answer_body()])) as url:
        told = PaidJob(tmp_path, url, questions=ONE, options=()).told()

    assert "in doubt: 1 requests" in told
    assert "at most $0.00" not in told


def test_a_budget_lasts_where_the_usage_cannot_be_read(tmp_path):
    with http_server(ScriptedBodies([answer_body(usage=None)])) as url:
        questions = tuple(f"What is number {number}?" for number in range(60))
        job = PaidJob(tmp_path, url, questions=questions, options=("--max-tokens", "2000", "--concurrency", "1"))
        summary = job.run("--budget", "1.00")

    assert 60 == summary["answers_written"]


def test_thoughts_beyond_max_tokens_are_booked_as_reported_and_said_once(tmp_path, caplog):
    body = answer_body(usage={"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623})
    bill = paid(body, tmp_path, "--max-tokens", "256", "--budget", "1.00")

    assert 20 * PROMPT + 603 * OUTPUT == bill
    assert 1 == sum("implausible usage" in message for message in caplog.messages)


@pytest.mark.parametrize(
    "cost, expected",
    [
        pytest.param(0.001, Decimal("0.00116"), id="below the table"),
        pytest.param(0.00116, Decimal("0.00116"), id="as the table"),
        pytest.param(0.5, Decimal("0.5"), id="above the table"),
        pytest.param(0, Decimal("0.00116"), id="nothing"),
        pytest.param("unknown", Decimal("0.00116"), id="no number"),
    ],
)
def test_of_the_providers_own_cost_and_the_tables_the_larger_is_booked(tmp_path, cost, expected):
    usage = {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18, "cost": cost}

    assert expected == paid(answer_body(usage=usage), tmp_path)


def test_the_providers_own_cost_prices_a_model_that_no_table_knows(tmp_path):
    (tmp_path / "other.yaml").write_text("as_of: 2026-01-01\nmodels: {}\n")
    usage = {"prompt_tokens": 10, "completion_tokens": 8, "cost": 0.25}
    with http_server(ScriptedBodies([answer_body(usage=usage)])) as url:
        told = PaidJob(tmp_path, url, questions=ONE).told("--prices", tmp_path / "other.yaml")

    assert "Paid: $0.25 for 1 answers" in told
