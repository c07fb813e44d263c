import json
from collections import Counter

import pytest

from crashproof.distillation.data.restated_spans import restated_spans
from crashproof.distillation.tasks.tool_calls import generated_source
from crashproof.distillation.tasks.tools import TOOLS


def test_the_same_seed_makes_the_same_lines() -> None:
    first, again, other = (generated_source(20, seed=seed, has_answers=True) for seed in (1, 1, 2))

    assert (first.samples, first.sha256) == (again.samples, again.sha256)
    assert first.sha256 != other.sha256


@pytest.mark.parametrize("has_answers", [False, True])
def test_every_line_passes_the_checks_that_files_pass(has_answers: bool) -> None:
    source = generated_source(200, seed=0, has_answers=has_answers)

    conversations = [conversation for _, conversation in source.conversations()]
    assert {1} == {len(each.calls) for each in conversations}
    assert {4 if has_answers else 2} == {len(each.messages) for each in conversations}


def test_four_to_eight_tools_are_offered_and_most_of_them_are_near_misses() -> None:
    domains = {tool.name: tool.domain for tool in TOOLS}

    offered = Counter()
    for _, conversation in generated_source(300, seed=0, has_answers=False).conversations():
        names, called = conversation.offered(), conversation.calls[0].name
        near = [name for name in names if name != called and domains[name] == domains[called]]
        of_domain = sum(domain == domains[called] for domain in domains.values()) - 1
        assert min(of_domain, len(names) // 2) <= len(near)
        offered[len(names)] += 1

    assert {4, 5, 6, 7, 8} == offered.keys()


def test_all_tools_are_called_with_nested_arguments_and_options_among_them() -> None:
    calls = [each.calls[0] for _, each in generated_source(600, seed=0, has_answers=False).conversations()]

    assert {tool.name for tool in TOOLS} == {call.name for call in calls}
    assert len(TOOLS) >= 24
    kinds = {type(value) for call in calls for value in call.arguments.values()}
    assert {str, int, float, dict, list} <= kinds
    by_tool = {(call.name, tuple(call.arguments)) for call in calls}
    assert len(by_tool) > len(TOOLS)


def test_nearly_every_answer_restates_its_result() -> None:
    samples = generated_source(200, seed=0, has_answers=True).samples

    spans = [
        restated_spans(sample["messages"][3]["content"], [sample["messages"][2]["content"]], min_words=3)
        for sample in samples
    ]

    assert sum(map(bool, spans)) >= 180


def test_a_request_says_dates_otherwise_than_a_call() -> None:
    samples = generated_source(400, seed=0, has_answers=False).samples
    dated = [
        (sample["messages"][0]["content"], arguments["date"])
        for sample in samples
        if "date" in (arguments := json.loads(sample["messages"][1]["tool_calls"][0]["function"]["arguments"]))
    ]

    as_written = sum(day in request for request, day in dated)
    assert 0 < as_written < len(dated) / 2
