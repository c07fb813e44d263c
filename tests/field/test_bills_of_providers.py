"""The job's bill beside the server's own, in each provider's manner."""

from __future__ import annotations

from decimal import Decimal

import pytest
from paid_jobs import PRICES, PaidJob

from crashproof.testing import Fault, Faults, Provider, TeacherServer

ODD_ANSWERS = {
    Provider.OPENROUTER: [Fault.BROKEN_OFF, Fault.RATE_LIMITED_IN_CHOICE],
    Provider.MINIMAX: [Fault.RATE_LIMITED_IN_BODY, Fault.NO_CHOICES],
    Provider.GEMINI: [Fault.ERROR_LIST],
    Provider.VLLM: [Fault.ERROR_DETAIL],
    Provider.OLLAMA: [Fault.ERROR_TEXT],
}


def thoughtful(body) -> dict[str, object]:
    return {"content": "A keel is a long timber.", "reasoning_content": "The user asks for a part of a ship, so " * 3}


@pytest.mark.parametrize("provider", Provider)
@pytest.mark.parametrize("budget", [(), ("--budget", "1.00")], ids=["without a budget", "with a budget"])
def test_the_jobs_bill_is_the_servers_own_to_the_last_digit(tmp_path, provider, budget):
    with TeacherServer(thoughtful, prices=PRICES, cached_share=0.4, provider=provider) as server:
        summary = PaidJob(tmp_path, server.base_url).run("--max-tokens", "300", *budget)
        counts = server.counts

    assert (3, "0") == (summary["answers_written"], summary["cost"]["in_doubt"])
    assert counts.dollars == Decimal(summary["cost"]["spent"]) > 0


@pytest.mark.parametrize("provider", Provider)
def test_through_each_providers_odd_answers_every_prompt_is_answered_and_all_money_is_told(tmp_path, provider):
    faults = Faults(script=[*ODD_ANSWERS.get(provider, []), None, Fault.TRUNCATED])
    with TeacherServer(prices=PRICES, provider=provider, faults=faults) as server:
        job = PaidJob(tmp_path, server.base_url, options=("--max-tokens", "200", "--concurrency", "1"))
        summary = job.run("--keep-truncated")
        counts = server.counts

    spent, in_doubt = (Decimal(summary["cost"][name]) for name in ("spent", "in_doubt"))
    assert 3 == summary["answers_written"]
    assert {"length": 1} == summary["incomplete"]
    assert spent <= counts.dollars <= spent + in_doubt
    assert [] == job.problems()
