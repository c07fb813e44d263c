"""Content as chat APIs write it, in every line form: parts, thoughts, refusals, media."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from learned_text import learned, texts_of, tokens_of, write_lines
from tool_lines import QWEN, WEATHER, asking, call, calling

from crashproof.errors import DataError

Learn = Callable[..., list[str]]

USER = {"role": "user", "content": "Two and two?"}
CHAT = {"messages": [USER, {"role": "assistant", "content": "Four."}]}
THINKING_QWEN = QWEN.replace(
    "{%- if loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}",
    "{%- if message.reasoning_content %}"
    "{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{%- endif %}",
)


@pytest.fixture
def learn(tmp_path: Path, field_tokenizer: Any) -> Learn:
    """What a recipe learns of lines."""

    def learn_lines(recipe: str, *lines: Any, **settings: Any) -> list[str]:
        return learned(recipe, write_lines(tmp_path / "data.jsonl", *lines), field_tokenizer, **settings)

    return learn_lines


def said(content: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": content, **fields}]}


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


@pytest.mark.parametrize("recipe", ["kd", "answer_generation"])
def test_parts_of_text_are_joined_in_questions_and_answers(tmp_path: Path, recipe: str, field_tokenizer: Any) -> None:
    asked = {"role": "user", "content": [text("Two "), {"type": "input_text", "text": "and two?"}]}
    answered = {"role": "assistant", "content": [text("Fo"), {"type": "output_text", "text": "ur."}]}
    path = write_lines(tmp_path / "data.jsonl", {"messages": [asked, answered]})

    ((read, learned_text),) = texts_of(tokens_of(recipe, path, field_tokenizer), field_tokenizer)

    assert "<|user|>\nTwo and two?<|end|>" in read
    assert "Four.<|end|>\n" == learned_text


MEDIA = {
    "an image": {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
    "an image of the Responses API": {"type": "input_image", "image_url": "https://example.invalid/a.png"},
    "audio": {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    "a video": {"type": "video_url", "video_url": {"url": "https://example.invalid/a.mp4"}},
    "a file": {"type": "file", "file": {"file_id": "f"}},
}


@pytest.mark.parametrize("part", MEDIA.values(), ids=MEDIA)
@pytest.mark.parametrize("recipe", ["kd", "answer_generation"])
def test_a_line_with_media_is_left_out_with_a_count_in_words(
    learn: Learn, recipe: str, part: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shown = {"messages": [{"role": "user", "content": [text("What is this?"), part]}, CHAT["messages"][1]]}

    assert ["Four."] == learn(recipe, shown, CHAT)
    assert "data.jsonl: 1 of 2 are left out because a message has a" in caplog.text
    assert "The student reads text alone" in caplog.text


def test_a_file_of_nothing_but_media_is_an_error_that_names_the_first_line(learn: Learn) -> None:
    shown = {"messages": [{"role": "user", "content": [MEDIA["an image"]]}, CHAT["messages"][1]]}

    with pytest.raises(DataError, match=r"data\.jsonl, line 1: a message has an image part; the other 1 "):
        learn("kd", shown, shown)


@pytest.mark.parametrize("part", [{"type": "hologram"}, {"text": "x"}, {"type": "text"}, 7], ids=str)
def test_a_part_that_nobody_knows_is_an_error(learn: Learn, part: Any) -> None:
    with pytest.raises(DataError, match=r'line 2: (message 2|a part of the "content" of message 2)'):
        learn("kd", CHAT, said([part]))


THOUGHTS = {
    "reasoning_content": said("Four.", reasoning_content="Add them."),
    "reasoning": said("Four.", reasoning="Add them."),
    "thinking": said("Four.", thinking="Add them."),
    "reasoning_details": said("Four.", reasoning_details=[{"type": "reasoning.text", "text": "Add them."}]),
    "a thinking part": said([{"type": "thinking", "thinking": "Add them.", "signature": "x"}, text("Four.")]),
    "a thinking part of parts": said([{"type": "thinking", "thinking": [text("Add them.")]}, text("Four.")]),
    "a reasoning part": said([{"type": "reasoning", "summary": [text("Add them.")]}, text("Four.")]),
    "inline": said("<think>\nAdd them.\n</think>\n\nFour."),
    "inline, opened by the prompt": said("Add them.\n</think>\n\nFour."),
    "a completion": {
        "prompt": [USER],
        "completion": [{"role": "assistant", "content": "Four.", "reasoning": "Add them."}],
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "<think>Add them.</think>Four."}]
    },
    "text": {"prompt": "Two and two? ", "teacher_text": "Four.", "reasoning_content": "Add them."},
    "inline text": {"prompt": "Two and two? ", "completion": "<think>\nAdd them.\n</think>\n\nFour."},
}
_THOUGHT = "<think>\nAdd them.\n</think>\n\nFour."


@pytest.mark.parametrize("line", THOUGHTS.values(), ids=THOUGHTS)
@pytest.mark.parametrize("recipe", ["kd", "answer_generation"])
def test_thoughts_are_one_decision_for_every_line_form(
    learn: Learn, recipe: str, line: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert ["Four."] == learn(recipe, line)
    assert "in 1 of 1: reasoning is not learned (data.learn_reasoning: true learns it)" in caplog.text
    assert [_THOUGHT] == learn(recipe, line, learn_reasoning=True)


def test_a_template_that_writes_thoughts_itself_writes_them_once(tmp_path: Path, field_tokenizer: Any) -> None:
    field_tokenizer.chat_template = THINKING_QWEN
    path = write_lines(tmp_path / "data.jsonl", THOUGHTS["reasoning"])

    ((read, learned_text),) = texts_of(tokens_of("kd", path, field_tokenizer, learn_reasoning=True), field_tokenizer)

    assert f"{_THOUGHT}<|im_end|>\n" == learned_text
    assert 1 == read.count("Add them.")


def test_thoughts_beside_a_call_are_learned_before_it(learn: Learn) -> None:
    made = calling(call("search", {"city": "Rome"})) | {"reasoning_content": "Search it."}
    line = {"messages": [asking(), made], "tools": [WEATHER]}

    for recipe in ("kd", "process", "tool_select", "answer_generation"):
        assert learn(recipe, line)[0].startswith("<tool_call>")
        assert learn(recipe, line, learn_reasoning=True)[0].startswith(
            "<think>\nSearch it.\n</think>\n\n\n<tool_call>"
        )


REFUSALS = {
    "as OpenAI's API returns it": said(None, refusal="I cannot help."),
    "as a part": said([{"type": "refusal", "refusal": "I cannot help."}]),
}


@pytest.mark.parametrize("line", REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("recipe", ["kd", "answer_generation"])
def test_a_refusal_is_left_out_with_a_count_or_taught_if_asked(
    learn: Learn, recipe: str, line: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert ["Four."] == learn(recipe, line, CHAT)
    assert "1 of 2 are left out because the assistant refuses" in caplog.text
    assert "Set data.learn_refusals to true" in caplog.text
    assert ["I cannot help.", "Four."] == learn(recipe, line, CHAT, learn_refusals=True)


def test_an_earlier_refusal_is_context_and_not_learned(learn: Learn, caplog: pytest.LogCaptureFixture) -> None:
    refused = REFUSALS["as a part"]["messages"]

    assert ["Four."] == learn("kd", {"messages": [*refused, *CHAT["messages"]]})
    assert "in 1 of 1: refusals are context, and not learned" in caplog.text


def test_an_empty_refusal_beside_an_answer_is_no_refusal(learn: Learn) -> None:
    assert ["Four."] == learn("kd", said("Four.", refusal=None, annotations=[], audio=None, function_call=None))


EMPTY = {
    "no text": said(""),
    "white space": said(" \n"),
    "null": said(None, tool_calls=None, refusal=None),
    "parts without text": said([text("")]),
    "a prompt's answer": {"prompt": "Two? ", "teacher_text": " "},
    "thoughts that were cut off": said("<think>\nAdd th"),
    "thoughts alone": said(None, reasoning_content="Add them."),
    "thoughts alone in a text": {"prompt": "Two? ", "teacher_text": "<think>Add them.</think>"},
}


@pytest.mark.parametrize("line", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("learn_reasoning", [False, True], ids=["without-thoughts", "with-thoughts"])
@pytest.mark.parametrize("recipe", ["kd", "answer_generation"])
def test_an_empty_answer_never_teaches_the_end_token_alone(
    learn: Learn, recipe: str, line: Any, learn_reasoning: bool
) -> None:
    assert ["Four."] == learn(recipe, line, CHAT, learn_reasoning=learn_reasoning)


def test_images_beside_the_messages_are_media_too(learn: Learn, caplog: pytest.LogCaptureFixture) -> None:
    assert ["Four."] == learn("kd", CHAT | {"images": ["1.jpg"]}, CHAT | {"images": []})
    assert "1 of 2 are left out because it has images beside its messages" in caplog.text


def test_the_roles_developer_and_name_are_read(
    tmp_path: Path, field_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    line = {"messages": [{"role": "developer", "content": "Be brief."}, USER | {"name": "Ann"}, CHAT["messages"][1]]}

    path = write_lines(tmp_path / "data.jsonl", line)
    ((read, _),) = texts_of(tokens_of("kd", path, field_tokenizer), field_tokenizer)

    assert read.startswith("<|system|>\nBe brief.<|end|>")
    assert "messages of the role developer are read as the system's" in caplog.text


def test_spans_in_an_answer_that_loses_its_thoughts_are_refused(learn: Learn) -> None:
    line = said("<think>x</think>Four.") | {"integration_spans": [[0, 4]], "tools": [WEATHER]}

    with pytest.raises(DataError, match='line 1: "integration_spans" count in an answer that is read otherwise'):
        learn("process", line)
