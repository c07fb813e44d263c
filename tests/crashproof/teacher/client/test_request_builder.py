"""From a question to the request that is sent."""

from __future__ import annotations

from typing import Any

import pytest

from crashproof.errors import RequestError
from crashproof.teacher.client.request_builder import RequestForm

URL = "http://teacher/v1"
TOOL = {"type": "function", "function": {"name": "weather"}}


def form(**parameters: Any) -> RequestForm:
    return RequestForm(base_url=URL, model="teacher", parameters=parameters)


def test_a_text_is_one_message_of_the_user() -> None:
    messages = [{"role": "user", "content": "What is a keel?"}]

    assert {"model": "teacher", "messages": messages} == form().fill("What is a keel?").body
    assert form().fill(messages).key == form().fill("What is a keel?").key


def test_what_one_question_sets_goes_before_the_form_and_none_leaves_it_out() -> None:
    body = form(temperature=1, top_p=0.5).fill("x", temperature=0, top_p=None).body

    assert (0, False) == (body["temperature"], "top_p" in body)


def test_the_model_is_the_forms_own() -> None:
    assert "teacher" == form(model="other").fill("x").body["model"]


@pytest.mark.parametrize("tools", [None, []])
def test_no_tools_are_not_sent(tools: list[Any] | None) -> None:
    request = form().fill("x", tools=tools)

    assert "tools" not in request.body
    assert form().fill("x").key == request.key != form().fill("x", tools=[TOOL]).key


def test_samples_differ_by_their_number_and_move_a_seed_along() -> None:
    with_seed = [form(seed=7).fill("x", sample=sample) for sample in range(3)]
    without = [form().fill("x", sample=sample) for sample in range(3)]

    assert [7, 8, 9] == [request.body["seed"] for request in with_seed]
    assert 6 == len({request.key for request in (*with_seed, *without)})
    assert all("seed" not in request.body for request in without)


def test_the_form_stays_as_it_is() -> None:
    one = form(seed=7)
    one.fill("x", sample=3, temperature=0)

    assert {"seed": 7} == one.parameters


def test_what_no_json_can_hold_is_refused() -> None:
    with pytest.raises(RequestError, match=r"stop is a set, not a JSON value"):
        form().fill("x", stop={"a"})


@pytest.mark.parametrize("name", ["api_key", "password", "authorization"])
def test_a_secret_among_the_parameters_is_refused_and_not_shown(name):
    with pytest.raises(RequestError, match=f"parameter {name} is a secret") as refusal:
        RequestForm(base_url="https://host.example/v1", model="m").fill("Hello", **{name: "swordfish"})

    assert "swordfish" not in str(refusal.value)
