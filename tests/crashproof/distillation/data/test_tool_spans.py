from pathlib import Path
from typing import Any

import pytest
from tool_lines import LLAMA, QWEN, TEMPLATES, answering, asking, call, calling, line, one_call, result, whole
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.tool_conversations import read_conversation
from crashproof.distillation.data.tool_spans import RenderedChat, render_conversation

TWO_CALLS = calling(call("search", {"city": "Rome"}, 1), call("search_web", {"query": 'a "b" {é}'}, 2))


def chat_of(sample: dict[str, Any], tokenizer: PreTrainedTokenizerFast, template: str | None) -> RenderedChat:
    tokenizer.chat_template = template
    return render_conversation(read_conversation(sample | {"line": 1}, Path("x")), tokenizer, min_words=3)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_name_and_arguments_are_found_in_their_turn(tokenizer: PreTrainedTokenizerFast, template: str | None) -> None:
    chat = chat_of(whole(), tokenizer, template)

    (found,) = chat.calls
    assert "search" == chat.text[slice(*found.name)]
    assert '{"city": "Rome", "days": 2}' == chat.text[slice(*found.arguments)]
    assert found.turn == chat.turns[0]
    assert found.turn[0] <= found.name[0] < found.arguments[0] < found.turn[1]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_what_the_answer_restates_is_found_in_its_turn(
    tokenizer: PreTrainedTokenizerFast, template: str | None
) -> None:
    chat = chat_of(whole("  It is clear, 21.5 degrees."), tokenizer, template)

    assert ["clear", "21.5"] == [chat.text[slice(*span)] for span in chat.restated]
    assert all(chat.turns[1][0] < start for start, _ in chat.restated)


def test_a_turn_ends_with_its_mark(tokenizer: PreTrainedTokenizerFast) -> None:
    expected = '<tool_call>\n{"name": "search", "arguments": {"city": "Rome", "days": 2}}\n</tool_call><|im_end|>\n'
    chat = chat_of(whole(), tokenizer, QWEN)

    assert expected == chat.text[slice(*chat.turns[0])]
    llama = chat_of(whole(), tokenizer, LLAMA)
    assert (
        '{"name": "search", "parameters": {"city": "Rome", "days": 2}}<|eot_id|>'
        == llama.text[slice(*llama.turns[0])]
    )


@pytest.mark.parametrize("template", [None, QWEN, TEMPLATES["function-tags"]], ids=["builtin", "qwen", "tags"])
def test_each_of_several_calls_is_found(tokenizer: PreTrainedTokenizerFast, template: str | None) -> None:
    sample = line(asking(), TWO_CALLS, result("1", 1), result("2", 2), calling(call("clock", {}, 3)))

    chat = chat_of(sample, tokenizer, template)

    assert ["search", "search_web", "clock"] == [chat.text[slice(*each.name)] for each in chat.calls]
    written = ['{"city": "Rome"}', '{"query": "a \\"b\\" {é}"}', "{}"]
    assert written == [chat.text[slice(*each.arguments)] for each in chat.calls]
    assert [0, 0, 1] == [chat.turns.index(each.turn) for each in chat.calls]


def test_a_name_that_is_also_said_is_found_where_it_is_called(tokenizer: PreTrainedTokenizerFast) -> None:
    said = 'I search: {"name": "search", "arguments": {"city": "Rome"}} and then'
    sample = line(asking(said), calling(call("search", {"city": "Rome"}), content=said))

    chat = chat_of(sample, tokenizer, None)

    (found,) = chat.calls
    assert chat.text[found.name[0] :].startswith('search", "arguments": {"city": "Rome"}}\n</tool_call>')
    assert chat.text[: found.turn[0]].endswith("<|assistant|>\n")


def test_spans_that_are_given_count_and_no_others_are_looked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = chat_of(whole() | {"integration_spans": [[0, 2], [19, 26]]}, tokenizer, None)

    assert ["It", "in Rome"] == [chat.text[slice(*span)] for span in chat.restated]


def test_no_spans_can_be_given(tokenizer: PreTrainedTokenizerFast) -> None:
    assert [] == chat_of(whole() | {"integration_spans": []}, tokenizer, None).restated


def test_an_answer_before_any_result_restates_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    sample = line(asking(), answering("21.5 degrees?"), *whole()["messages"])

    chat = chat_of(sample, tokenizer, None)

    assert all(start > chat.turns[0][1] for start, _ in chat.restated)


@pytest.mark.parametrize(
    "template, reason",
    [
        pytest.param(
            "{% for m in messages %}"
            "{{ m.content or m.tool_calls[0].function.arguments | tojson | tojson }};{% endfor %}"
            "{% if add_generation_prompt %}>{% endif %}",
            "calls cannot be found|as JSON, once, in its turn",
            id="arguments-as-text-in-json",
        ),
        pytest.param(
            "{% for m in messages %}>{{ m.content or m.tool_calls[0].function.arguments | tojson }};{% endfor %}"
            "{% if add_generation_prompt %}>{% endif %}",
            "does not write the name search before its arguments",
            id="no-name",
        ),
        pytest.param(
            "{% for m in messages %}>{{ m.content or m.tool_calls[0].function.name }};{% endfor %}"
            "{% if add_generation_prompt %}>{% endif %}",
            "as JSON, once, in its turn",
            id="no-arguments",
        ),
        pytest.param(
            "{% for m in messages %}>{{ m.content or m.tool_calls[0].function.name | upper }}"
            "{{ m.tool_calls[0].function.arguments | tojson if m.tool_calls }};{% endfor %}"
            "{% if add_generation_prompt %}>{% endif %}",
            "cannot be found in the text",
            id="another-name",
        ),
        pytest.param("{{ raise_exception('no tools here') }}", "no tools here", id="refused"),
    ],
)
def test_a_template_whose_calls_cannot_be_found_is_refused(
    tokenizer: PreTrainedTokenizerFast, template: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        chat_of(one_call(), tokenizer, template)


def test_two_calls_are_refused_where_a_template_takes_one(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="only supports single tool-calls"):
        chat_of(line(asking(), TWO_CALLS), tokenizer, LLAMA)
