import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tool_lines import CLOCK, WEATHER, answering, asking, call, calling, line, one_call, result, whole

from crashproof.distillation.data.tool_conversations import Conversation, read_conversation, read_source
from crashproof.errors import DataError

Write = Callable[..., Path]
HERE = Path("lines.jsonl")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_it(*lines: Any) -> Path:
        path = tmp_path / "lines.jsonl"
        path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines))
        return path

    return write_it


def read(sample: dict[str, Any]) -> Conversation:
    return read_conversation(sample | {"line": 7}, HERE)


def tool(name: str, parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_templates_get_arguments_as_an_object() -> None:
    conversation = read(one_call(arguments={"city": "Rome", "days": 2}))

    (made,) = conversation.messages[1]["tool_calls"]
    assert {"name": "search", "arguments": {"city": "Rome", "days": 2}} == made["function"]
    assert "call_1" == made["id"]
    assert ["search", "search_web", "clock"] == conversation.offered()


def test_arguments_stand_in_the_order_of_the_schema_however_deep() -> None:
    place = {"type": "object", "properties": {"street": {"type": "string"}, "number": {"type": "integer"}}}
    schema = {
        "type": "object",
        "properties": {"when": {"type": "string"}, "stops": {"type": "array", "items": {"$ref": "#/$defs/place"}}},
        "$defs": {"place": place},
    }
    given = {"more": 1, "stops": [{"number": 1, "street": "a"}, {"street": "b", "number": 2}], "when": "now"}

    conversation = read(
        line(asking(), calling(call("go", given)), tools=[tool("go", schema)]),
    )

    (made,) = conversation.calls
    assert given == made.arguments
    expected = '{"when": "now", "stops": [{"street": "a", "number": 1}, {"street": "b", "number": 2}], "more": 1}'
    assert expected == json.dumps(made.arguments)


def test_a_tool_without_parameters_takes_none() -> None:
    assert {} == read(one_call("clock", {})).calls[0].arguments
    with pytest.raises(DataError, match="the arguments of clock violate its schema"):
        read(one_call("clock", {"zone": "UTC"}))


def test_results_find_their_calls_by_id_or_by_order() -> None:
    calls = calling(call("clock", {}, 1), call("search", {"city": "Rome"}, 2))
    nameless = [{key: value for key, value in result("{}", n).items() if key != "tool_call_id"} for n in (1, 2)]

    assert 2 == len(read(line(asking(), calls, result("1", 2), result("2", 1), answering("."))).calls)
    assert 2 == len(read(line(asking(), calls, *nameless)).calls)


def test_spans_that_are_given_are_kept() -> None:
    assert [(6, 10)] == read(whole() | {"integration_spans": [[6, 10]]}).restated
    assert read(whole()).restated is None


def test_an_empty_list_of_calls_is_no_call() -> None:
    conversation = read(line(asking(), answering("21") | {"tool_calls": []}))

    assert ([], answering("21")) == (conversation.calls, conversation.messages[-1])


def bad(**function: Any) -> dict[str, Any]:
    return line(asking(), {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]})


@pytest.mark.parametrize(
    "sample, reason",
    [
        pytest.param(one_call("find"), "it calls find, which is not offered. Offered are search, ", id="not-offered"),
        pytest.param(bad(name="search", arguments="{"), "the arguments of search are not valid JSON", id="no-json"),
        pytest.param(bad(name="search", arguments='{"days": NaN}'), "JSON has no NaN", id="nan"),
        pytest.param(
            bad(name="search", arguments="[1]"), "the arguments of search are not a JSON object", id="a-list"
        ),
        pytest.param(bad(name="search", arguments=7), "of search are not text", id="no-string"),
        pytest.param(bad(name="search"), "the arguments of search are not text", id="no-arguments"),
        pytest.param(bad(arguments="{}"), "names no function", id="no-name"),
        pytest.param(
            one_call(arguments={"days": 2}), r"violate its schema, at \$: 'city' is a required", id="missing"
        ),
        pytest.param(one_call(arguments={"city": "R", "days": 99}), r"at \$\.days: 99 is greater", id="out-of-range"),
        pytest.param(one_call(arguments={"city": "R", "town": "T"}), "Additional properties", id="unknown"),
        pytest.param(line(asking(), tools=[]), '"tools" must be a non-empty list', id="no-tools"),
        pytest.param(line(asking(), tools=[WEATHER, WEATHER]), "two tools are named search", id="twice"),
        pytest.param(line(asking(), tools=["search"]), "a tool must be", id="tool-is-text"),
        pytest.param(line(asking(), tools=[tool("a b", None)]), "its name without spaces", id="name-with-space"),
        pytest.param(line(asking(), tools=[tool("a", [])]), 'the "parameters" of a must be', id="schema-is-a-list"),
        pytest.param(
            line(asking(), tools=[CLOCK, tool("odd", {"properties": {"a": {"not": {}}}})]),
            r'the schema of odd cannot be compiled: Unimplemented keys: \["not"\]',
            id="schema-not-compiled",
        ),
        pytest.param({"tools": [CLOCK]}, '"messages" must be a non-empty list', id="no-messages"),
        pytest.param(line({"content": "x"}), 'message 1 needs a "role"', id="no-role"),
        pytest.param(line({"role": "user"}), r'the "content" of message 1 \(user\) must be text', id="no-content"),
        pytest.param(line(calling(call("clock", {})) | {"role": "user"}), "of the assistant", id="the-user-calls"),
        pytest.param(line(calling(call("clock", {})) | {"content": 1}), "must be null or text", id="odd-content"),
        pytest.param(line(asking(), result("1")), r"a tool's result \(call_1\) belongs to no call", id="no-call"),
        pytest.param(
            line(calling(call("clock", {})), result("1"), result("2")),
            "belongs to no call before it",
            id="two-results",
        ),
        pytest.param(line({"role": "tool", "content": "1"}), "a tool's result belongs to no call", id="nameless"),
        pytest.param(whole() | {"integration_spans": [[6, 400]]}, "is outside an answer of 27", id="span-too-long"),
        pytest.param(whole() | {"integration_spans": [[6, 6]]}, "is outside an answer", id="span-empty"),
        pytest.param(whole() | {"integration_spans": 6}, '"integration_spans" must be a list', id="spans-no-list"),
        pytest.param(one_call() | {"integration_spans": []}, "the last message an answer", id="spans-of-no-answer"),
    ],
)
def test_a_line_that_cannot_be_used_says_which_and_why(sample: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=r"lines\.jsonl, line 7: ") as caught:
        read(sample)

    caught.match(reason)


def test_a_reference_to_elsewhere_is_not_fetched() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "https://example.invalid/a.json"}}}

    with pytest.raises(DataError, match="the schema of far cannot be compiled"):
        read(line(asking(), calling(call("far", {"a": 1})), tools=[tool("far", schema)]))


def test_a_file_is_read_line_by_line(write: Write) -> None:
    path = write(one_call(), "", whole())

    source = read_source(path, has_one_call=True)

    assert [1, 3] == [number for number, _ in source.conversations()]
    assert path == source.where


def test_the_text_for_a_tokenizer_has_tools_calls_and_results(write: Write) -> None:
    (text,) = read_source(write(whole()), has_one_call=True).documents()

    assert all(part in text for part in ("Search the weather.", '"arguments": {"city": "Rome", "days": 2}', '"sky"'))


def test_a_share_of_the_lines_is_held_out_and_can_still_be_read(write: Write) -> None:
    learned, held_out = read_source(write(*[one_call()] * 10), has_one_call=True).split(0.2)

    assert (8, 2) == (len(list(learned.conversations())), len(list(held_out.conversations())))
    assert learned.sha256 != held_out.sha256


@pytest.mark.parametrize(
    "sample, has_one_call, reason",
    [
        (line(asking(), answering("21")), True, "line 1: it must have exactly one tool call, and has 0"),
        (line(asking(), answering("21")), False, "line 1: it must have at least one tool call, and has 0"),
        (line(calling(call("clock", {}), call("clock", {}, 2))), True, "exactly one tool call, and has 2"),
        ("{", True, "line 1: it is not valid JSON"),
        ("[]", True, "line 1: it is not a JSON object"),
        ("", True, "it contains no samples"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(write: Write, sample: Any, has_one_call: bool, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_source(write(sample), has_one_call=has_one_call)


def test_two_calls_are_accepted_unless_one_is_required(write: Write) -> None:
    source = read_source(write(line(calling(call("clock", {}), call("clock", {}, 2)))), has_one_call=False)

    assert 1 == len(source.samples)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it cannot be read"):
        read_source(tmp_path / "none.jsonl", has_one_call=True)
