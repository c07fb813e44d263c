from __future__ import annotations

import json
import socket
import threading
from decimal import Decimal
from typing import Any

import pytest
from teaching import completion

from crashproof.records.requests import AnswerRecord
from crashproof.teacher.client.answers import Answer, answer_in, problem_with
from crashproof.teacher.replies.usage import Usage

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
    },
}
PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def record(response: dict[str, Any]) -> AnswerRecord:
    return AnswerRecord(
        timestamp=1.0,
        session_id="s",
        attempt=1,
        prompt_hash="k1",
        cost=Decimal("0.1"),
        response=response,
    )


def answer(message: str | dict[str, Any]) -> Answer:
    return answer_in(record(completion(message)))


def calls(*called: Any) -> dict[str, Any]:
    return {"content": None, "tool_calls": list(called)}


def call(name: Any = "add", arguments: Any = '{"a": 2}') -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_an_answer_is_the_first_choice_with_its_price_and_its_count():
    said = answer("4")

    assert ("k1", "4", "stop", Decimal("0.1")) == (said.key, said.text, said.finish_reason, said.cost)
    assert Usage(prompt_tokens=10, completion_tokens=5) == said.usage
    assert {"role": "assistant", "content": "4"} == said.message
    assert said.logprobs is None


def test_half_a_count_is_none():
    response = completion("4", usage={"prompt_tokens": 10})

    assert answer_in(record(response)).usage is None


def test_probabilities_are_given_by_token():
    by_token = [{"token": "4", "logprob": -0.1, "top_logprobs": []}]
    response = completion("4")
    response["choices"][0]["logprobs"] = {"content": by_token}

    assert by_token == answer_in(record(response)).logprobs


@pytest.mark.parametrize("logprobs", [None, [], "x", {"content": None}, {"content": "x"}, {}], ids=repr)
def test_probabilities_in_another_form_are_none(logprobs):
    response = completion("4")
    response["choices"][0]["logprobs"] = logprobs

    assert answer_in(record(response)).logprobs is None


@pytest.mark.parametrize(
    "message, text",
    [
        pytest.param({"content": ""}, "", id="empty"),
        pytest.param({"content": None, "refusal": "No."}, "", id="refusal"),
        pytest.param(calls(call()), "", id="tool call"),
        pytest.param({"tool_calls": [call()]}, "", id="tool call without content"),
        pytest.param({"content": "Let me add.", "tool_calls": [call()]}, "Let me add.", id="both"),
    ],
)
def test_an_answer_may_say_little(message, text):
    assert text == answer(message).text


@pytest.mark.parametrize(
    "response, told",
    [
        pytest.param({}, "no choices", id="nothing"),
        pytest.param({"choices": []}, "no choices", id="empty list"),
        pytest.param({"choices": None}, "no choices", id="null"),
        pytest.param({"choices": {"0": {}}}, "no choices", id="object"),
        pytest.param({"choices": 5}, "no choices", id="number"),
        pytest.param({"choices": ["text"]}, "no choices", id="list of texts"),
        pytest.param({"choices": [{}]}, "no message", id="no message"),
        pytest.param({"choices": [{"message": "4"}]}, "no message", id="text as message"),
        pytest.param({"choices": [{"message": {"content": ["4"]}}]}, "its content is a list", id="parts"),
        pytest.param({"choices": [{"message": {"content": 4}}]}, "its content is a int", id="number as content"),
        pytest.param(
            {"choices": [{"message": {"content": None}}]}, "neither content nor tool calls", id="null content"
        ),
        pytest.param({"choices": [{"message": {"tool_calls": []}}]}, "neither content nor tool", id="no tool calls"),
    ],
)
def test_what_holds_no_answer_says_why(response, told):
    with pytest.raises(ValueError, match=told):
        answer_in(record(response))


def as_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize(
    "text, wanted, told",
    [
        pytest.param("no JSON", None, None, id="no format wanted"),
        pytest.param("no JSON", {"type": "text"}, None, id="text wanted"),
        pytest.param("no JSON", "json", None, id="a format that nobody knows"),
        pytest.param('{"a": 1}', {"type": "json_object"}, None, id="JSON wanted and given"),
        pytest.param(
            "no JSON", {"type": "json_object"}, "its content is not valid JSON", id="JSON wanted and not given"
        ),
        pytest.param('```json\n{"a": 1}\n```', {"type": "json_object"}, "is not valid JSON", id="a fence around it"),
        pytest.param('{"a": ', {"type": "json_object"}, "its content is not valid JSON", id="cut off"),
        pytest.param("", {"type": "json_object"}, "its content is not valid JSON", id="empty"),
        pytest.param("", as_schema(PERSON), "its content is not valid JSON", id="empty, with a schema"),
        pytest.param("[" * 100_000, {"type": "json_object"}, "its content is not valid JSON", id="too deep"),
        pytest.param('{"age": 7}', as_schema(PERSON), None, id="schema kept"),
        pytest.param(
            '{"age": "7"}', as_schema(PERSON), "its content, at $.age: '7' is not of type", id="schema broken"
        ),
        pytest.param("{}", as_schema(PERSON), "its content, at $: 'age' is a required property", id="key missing"),
        pytest.param("{}", {"type": "json_schema"}, None, id="no schema"),
        pytest.param("{}", {"type": "json_schema", "json_schema": []}, None, id="no schema either"),
        pytest.param("{}", as_schema(True), None, id="a schema that allows all"),
        pytest.param("{}", as_schema({"type": "nonsense"}), None, id="a schema that is none"),
        pytest.param("{}", as_schema({"$ref": "#"}), None, id="a schema that never ends"),
        pytest.param("{}", as_schema({"pattern": "("}), None, id="a schema with a broken pattern"),
        pytest.param("{}", as_schema({"$ref": "#/$defs/gone"}), None, id="a schema that points nowhere"),
        pytest.param(
            '{"kids": [{"kids": [{"age": 1}]}]}',
            as_schema({"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}}),
            None,
            id="a schema within itself",
        ),
        pytest.param(
            '{"a": 1.5}',
            as_schema({"$defs": {"whole": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/whole"}}}),
            "its content, at $.a: 1.5 is not of type 'integer'",
            id="a definition within",
        ),
    ],
)
def test_a_wanted_format_is_held_against_the_content(text, wanted, told):
    problem = problem_with(answer({"content": text}), {"response_format": wanted})

    assert (problem is None) if told is None else (told in (problem or ""))


@pytest.mark.parametrize(
    "message", [calls(call()), {"content": None, "refusal": "No."}, {"content": "", "refusal": "No."}]
)
def test_a_call_or_a_refusal_needs_no_format(message):
    assert problem_with(answer(message), {"response_format": as_schema(PERSON), "tools": [ADD]}) is None


@pytest.mark.parametrize(
    "called, told",
    [
        pytest.param([call()], None, id="as offered"),
        pytest.param([call(), call(arguments='{"a": -1}')], None, id="two as offered"),
        pytest.param([call("sub")], "it calls 'sub', which was not offered", id="not offered"),
        pytest.param([call(None)], "it calls None, which was not offered", id="no name"),
        pytest.param([call(["add"])], "it calls ['add'], which was not offered", id="a list as name"),
        pytest.param([call(arguments="{}")], "the arguments of add, at $: 'a' is a required", id="argument missing"),
        pytest.param([call(arguments="")], "the arguments of add, at $: 'a' is a required", id="no arguments"),
        pytest.param([call(arguments='{"a": "2"}')], "the arguments of add, at $.a", id="argument of another kind"),
        pytest.param([call(arguments='{"a": 2')], "the arguments of add are not valid JSON", id="cut off"),
        pytest.param([call(arguments="[" * 100_000)], "the arguments of add are not valid JSON", id="too deep"),
        pytest.param([call(arguments={"a": 2})], "a tool call has no function with", id="arguments as an object"),
        pytest.param([call(), call("sub")], "it calls 'sub'", id="the second one"),
        pytest.param([{"id": "c1"}], "a tool call has no function with arguments", id="no function"),
        pytest.param(["add"], "a tool call has no function with arguments", id="a text"),
    ],
)
def test_tool_calls_are_held_against_what_was_offered(called, told):
    problem = problem_with(answer(calls(*called)), {"tools": [ADD]})

    assert (problem is None) if told is None else (told in (problem or ""))


@pytest.mark.parametrize("tool_calls", [{"0": call()}, "add", 5], ids=["object", "text", "number"])
def test_tool_calls_that_are_no_list_are_a_problem(tool_calls):
    problem = problem_with(answer({"content": "4", "tool_calls": tool_calls}), {"tools": [ADD]})

    assert "its tool calls are a" in (problem or "")


def test_a_call_where_nothing_was_offered_is_a_problem():
    assert "it calls 'add', which was not offered" == problem_with(answer(calls(call())), {})


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "function": {"name": "add"}},
        {"type": "function", "function": {"name": "add", "parameters": None}},
        {"type": "function", "function": {"name": "add", "parameters": {"type": "nonsense"}}},
    ],
    ids=["no parameters", "null", "no schema"],
)
def test_a_tool_without_a_schema_takes_any_json(tool):
    assert problem_with(answer(calls(call(arguments='{"x": 1}'))), {"tools": [tool]}) is None


@pytest.mark.parametrize("tool", ["add", {"type": "custom"}, {"function": "add"}, {"function": {}}], ids=str)
def test_a_tool_of_another_kind_offers_nothing(tool):
    assert "was not offered" in (problem_with(answer(calls(call())), {"tools": [tool]}) or "")


def test_checking_an_answer_asks_nobody():
    """A schema may point anywhere; an answer is no reason to go there."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)

        def wait() -> None:
            try:
                listener.accept()[0].close()
                asked.append(True)
            except TimeoutError:
                pass

        waiting = threading.Thread(target=wait)
        waiting.start()
        schema = {"$ref": f"http://127.0.0.1:{listener.getsockname()[1]}/schema.json"}
        problem = problem_with(answer("{}"), {"response_format": as_schema(schema)})
        waiting.join()

    assert (None, []) == (problem, asked)


def test_a_problem_is_told_in_a_few_words():
    problem = problem_with(answer(json.dumps({"age": "x" * 10_000})), {"response_format": as_schema(PERSON)})

    assert len(problem or "") < 300
