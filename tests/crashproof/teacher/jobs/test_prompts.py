from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashproof.errors import DataError
from crashproof.teacher.jobs.prompts import Prompt, problem_with_answer, read_prompts, trained_line

HELLO = [{"role": "user", "content": "Hello"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
ASKED = Prompt(line=1, messages=HELLO, text="Hello", extra={"id": 7})
CHAT = Prompt(line=2, messages=HELLO, tools=TOOLS, extra={"id": 7, "split": "a"})

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_lines(*lines: Any) -> Path:
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write_lines


def batch(**others: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": HELLO, "temperature": 0.5, "tools": TOOLS}
    return {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": body} | others


def test_a_prompt_is_one_message_of_the_user(write: Write) -> None:
    path = write({"id": 7, "prompt": "Hello", "split": "a"})

    assert [
        Prompt(line=1, messages=HELLO, text="Hello", extra={"id": 7, "split": "a"}),
    ] == list(read_prompts(path))


def test_messages_stay_as_they_are(write: Write) -> None:
    messages = [
        {"role": "system", "content": "Be brief.", "name": "house"},
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]

    (prompt,) = read_prompts(write({"messages": messages, "tools": TOOLS, "id": 7}))

    assert Prompt(line=1, messages=messages, tools=TOOLS, extra={"id": 7}) == prompt


def test_a_batch_line_brings_its_parameters(write: Write) -> None:
    (prompt,) = read_prompts(write(batch(note="x")))

    assert prompt == Prompt(
        line=1,
        messages=HELLO,
        tools=TOOLS,
        parameters={"model": "m", "temperature": 0.5},
        custom_id="one",
        extra={"custom_id": "one", "note": "x"},
    )


def test_extra_fields_keep_their_order_and_their_values(write: Write) -> None:
    extra = {"z": 1.0, "a": [None, True], "custom_id": "free", "body": "of a letter", "m": {"y": 1, "b": 10**30}}

    (prompt,) = read_prompts(write(extra | {"prompt": "Hello"}))

    assert list(extra.items()) == list(prompt.extra.items())
    assert isinstance(prompt.extra["z"], float)


@pytest.mark.parametrize("tools", [None, []], ids=repr)
def test_no_tools_are_no_tools(write: Write, tools: Any) -> None:
    (prompt,) = read_prompts(write({"messages": HELLO, "tools": tools}))

    assert prompt.tools is None


def test_fields_that_are_null_in_a_message_are_not_there(write: Write) -> None:
    message = {"role": "user", "content": "Hello", "tool_calls": None}

    assert 1 == len(list(read_prompts(write({"messages": [message]}))))


def test_prompts_keep_the_numbers_of_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('\n{"prompt": "a"}\n\n{"prompt": "b"}')

    assert [(2, "a"), (4, "b")] == [(prompt.line, prompt.text) for prompt in read_prompts(path)]


def test_prompts_before_a_malformed_line_are_given_first(write: Write) -> None:
    prompts = read_prompts(write({"prompt": "a"}, {"text": "b"}))

    assert "a" == next(prompts).text
    with pytest.raises(DataError, match="line 2"):
        next(prompts)


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello"} | fields]}


def called(call: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "tool_calls": call}, *HELLO]}


@pytest.mark.parametrize(
    "line, expected",
    [
        pytest.param({"text": "a"}, 'neither "prompt" nor "messages"', id="neither"),
        pytest.param({"prompt": "a", "messages": HELLO}, 'both "prompt" and "messages"', id="both"),
        pytest.param({"prompt": ""}, '"prompt" must be a non-empty string', id="empty-prompt"),
        pytest.param({"prompt": ["a"]}, '"prompt" must be a non-empty string', id="list-of-prompts"),
        pytest.param({"prompt": "a", "tools": TOOLS}, '"tools" need "messages"', id="prompt-with-tools"),
        pytest.param({"messages": []}, '"messages" must be a non-empty list', id="no-messages"),
        pytest.param({"messages": "Hello"}, '"messages" must be a non-empty list', id="messages-that-are-text"),
        pytest.param({"messages": ["Hello"]}, "message 1 is not an object", id="message-that-is-text"),
        pytest.param({"messages": [*HELLO, {"content": "a"}]}, 'message 2 has no "role"', id="no-role"),
        pytest.param(message(role="human"), "unknown role 'human'", id="unknown-role"),
        pytest.param(message(content=None), 'message 1 has no "content"', id="no-content"),
        pytest.param(message(content=5), "neither text nor a list of parts", id="content-is-a-number"),
        pytest.param(message(content=[]), "neither text nor a list of parts", id="no-parts"),
        pytest.param(message(content=["a"]), 'part of "content" without "type"', id="part-that-is-text"),
        pytest.param(message(content=[{"type": "text"}]), 'without its "text"', id="part-without-text"),
        pytest.param(
            {"messages": [{"role": "assistant", "content": None}, *HELLO]}, 'has no "content"', id="assistant-silent"
        ),
        pytest.param(
            {"messages": [*HELLO, {"role": "assistant", "content": "Hi"}]},
            "last message is the assistant's",
            id="answered-already",
        ),
        pytest.param({"messages": HELLO, "tools": {}}, '"tools" must be a list', id="tools-no-list"),
        pytest.param({"messages": HELLO, "tools": ["f"]}, '"tools" must be a list', id="tool-that-is-text"),
        pytest.param({"messages": HELLO, "tools": [{"name": "f"}]}, '"tools" must be a list', id="tool-without-type"),
        pytest.param(
            {"messages": HELLO, "tools": [{"type": "function", "function": {}}]},
            '"tools" must be a list',
            id="tool-without-name",
        ),
        pytest.param(called({}), '"tool_calls" that are not a list', id="calls-no-list"),
        pytest.param(called(["f"]), 'without a "function"', id="call-that-is-text"),
        pytest.param(
            called([{"function": {"arguments": "{}"}}]), 'a "function" that has a "name"', id="call-no-name"
        ),
        pytest.param(
            called([{"function": {"name": "f", "arguments": {"a": 1}}}]), "not a JSON string", id="arguments-object"
        ),
        pytest.param(
            called([{"function": {"name": "f", "arguments": "a=1"}}]), "not a JSON string", id="arguments-no-json"
        ),
        pytest.param(
            {"prompt": "a", "teacher_text": "b"}, '"teacher_text" is reserved for the answer', id="answered"
        ),
        pytest.param({"messages": HELLO, "sample": 1}, '"sample" is reserved for the answer', id="sample"),
        pytest.param(batch(logprobs=[]), '"logprobs" is reserved for the answer', id="logprobs"),
        pytest.param(batch(custom_id=5), 'a batch line needs a "custom_id"', id="custom-id-no-text"),
        pytest.param(batch(method="GET"), '"method": "POST"', id="method"),
        pytest.param(batch(url="/v1/embeddings"), '"url": "/v1/chat/completions"', id="url"),
        pytest.param(batch(body={"input": "a"}), 'an object with "messages"', id="body-without-messages"),
        pytest.param(batch(body="a"), 'an object with "messages"', id="body-no-object"),
        pytest.param(batch(tools=TOOLS), 'belong in its "body"', id="tools-beside-the-body"),
    ],
)
def test_a_malformed_line_says_what_is_wrong_with_it(write: Write, line: Any, expected: str) -> None:
    path = write({"prompt": "good"}, line)

    with pytest.raises(DataError, match=expected) as caught:
        list(read_prompts(path))

    assert (path, 2) == (caught.value.path, caught.value.line)
    assert caught.value.hint


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": NaN}\n')

    with pytest.raises(DataError, match="line 2: it is not valid JSON"):
        list(read_prompts(path))


def test_a_custom_id_that_stands_twice_names_both_lines(write: Write) -> None:
    path = write(batch(), batch(custom_id="two"), batch())

    with pytest.raises(DataError, match=r"line 3: .*'one' is already used on line 1"):
        list(read_prompts(path))


@pytest.mark.parametrize("content", ["", "\n\n"], ids=["empty", "blank"])
def test_a_file_without_prompts_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)

    with pytest.raises(DataError, match="it contains no prompts"):
        list(read_prompts(path))


def test_a_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it cannot be read"):
        list(read_prompts(tmp_path / "none.jsonl"))


def test_the_answer_to_a_prompt_stands_beside_it() -> None:
    line = trained_line(ASKED, {"role": "assistant", "content": "Hi", "refusal": None, "annotations": []})

    assert ["prompt", "teacher_text", "finish_reason", "id"] == list(line)
    assert {"prompt": "Hello", "teacher_text": "Hi", "finish_reason": None, "id": 7} == line


def test_the_answer_to_messages_is_their_last() -> None:
    line = trained_line(CHAT, {"role": "assistant", "content": "Hi"})

    assert ["messages", "tools", "finish_reason", "id", "split"] == list(line)
    assert [*HELLO, {"role": "assistant", "content": "Hi"}] == line["messages"]
    assert TOOLS == line["tools"]
    assert 1 == len(CHAT.messages)


@pytest.mark.parametrize(
    "message, expected",
    [
        pytest.param(
            {"content": None, "tool_calls": [CALL]}, {"content": None, "tool_calls": [CALL]}, id="tool-call"
        ),
        pytest.param({"tool_calls": [CALL]}, {"content": None, "tool_calls": [CALL]}, id="tool-call-without-content"),
        pytest.param(
            {"content": "Hi", "reasoning_content": "Hm"}, {"content": "Hi", "reasoning_content": "Hm"}, id="reasoning"
        ),
        pytest.param({"content": None, "refusal": "No."}, {"content": None, "refusal": "No."}, id="refusal"),
        pytest.param(
            {"content": "Hi", "tool_calls": [], "refusal": None, "audio": None, "function_call": None, "x_id": "9"},
            {"content": "Hi"},
            id="idle-fields",
        ),
    ],
)
def test_of_an_answer_is_kept_what_it_says(message: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {"role": "assistant"} | expected == trained_line(CHAT, message)["messages"][-1]


def test_one_of_several_answers_says_which_it_is() -> None:
    line = trained_line(ASKED, {"content": "Hi"}, sample=2, num_samples=4)

    assert 2 == line["sample"]


def test_a_single_answer_has_no_number() -> None:
    assert "sample" not in trained_line(ASKED, {"content": "Hi"}, sample=0, num_samples=1)


def test_logprobs_go_along_where_they_were_given() -> None:
    logprobs = [{"token": "Hi", "logprob": -0.5, "top_logprobs": []}]

    assert logprobs == trained_line(ASKED, {"content": "Hi"}, logprobs=logprobs)["logprobs"]
    assert "logprobs" not in trained_line(ASKED, {"content": "Hi"})


@pytest.mark.parametrize(
    "prompt, message, expected",
    [
        pytest.param(ASKED, {"content": "Hi"}, None, id="text"),
        pytest.param(ASKED, {"content": ""}, "it is empty", id="empty-text"),
        pytest.param(ASKED, {}, "it is empty", id="nothing"),
        pytest.param(ASKED, {"content": None, "refusal": "No."}, "the teacher refused", id="refusal"),
        pytest.param(ASKED, {"content": "Hi", "tool_calls": [CALL]}, "it calls a tool", id="tool-call"),
        pytest.param(ASKED, {"content": [{"type": "text"}]}, "not text but a list", id="parts"),
        pytest.param(CHAT, {"content": "Hi"}, None, id="chat-text"),
        pytest.param(CHAT, {"tool_calls": [CALL]}, None, id="chat-tool-call"),
        pytest.param(CHAT, {"refusal": "No."}, None, id="chat-refusal"),
        pytest.param(CHAT, {"content": "", "tool_calls": []}, "it is empty", id="chat-empty"),
        pytest.param(CHAT, {"content": 5}, "not text but a int", id="chat-number"),
    ],
)
def test_an_answer_that_makes_no_line_is_told(prompt: Prompt, message: dict[str, Any], expected: str | None) -> None:
    problem = problem_with_answer(prompt, message)

    assert (problem is None) is (expected is None)
    assert (expected or "") in (problem or "")


def test_what_is_written_is_no_prompt_again(write: Write) -> None:
    line = trained_line(ASKED, {"content": "Hi"})

    with pytest.raises(DataError, match="finish_reason"):
        list(read_prompts(write(line)))
