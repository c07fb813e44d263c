import pytest
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.text.chat import render_builtin, render_chat, render_question

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Two and two?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "And two?"},
    {"role": "assistant", "content": "Six."},
]


def answers(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    text, spans = render_chat(messages, tokenizer)
    return [text[start:end] for start, end in spans]


def test_every_turn_of_the_assistant_is_an_answer_with_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    assert ["Four.<|end|>\n", "Six.<|end|>\n"] == answers(TURNS, tokenizer)


def test_the_text_holds_every_turn_in_order(tokenizer: PreTrainedTokenizerFast) -> None:
    text, _ = render_chat(TURNS, tokenizer)
    places = [text.index(turn["content"]) for turn in TURNS]

    assert places == sorted(places)


def test_the_tokenizers_own_template_is_used(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )

    assert ["Four.;", "Six.;"] == answers(TURNS, tokenizer)


def test_answers_are_found_in_a_template_that_rewrites_what_was_before(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )

    assert ["Four.", "Six."] == answers(TURNS, tokenizer)


def test_a_template_that_drops_the_answers_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"

    with pytest.raises(ValueError, match="drops an answer"):
        render_chat(TURNS, tokenizer)


def test_a_template_that_refuses_says_why(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ raise_exception('no system message, please') }}"

    with pytest.raises(ValueError, match=r"refuses the messages .*no system message, please"):
        render_chat(TURNS, tokenizer)


def test_a_template_that_shortens_earlier_answers_does_not_shift_the_spans(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """As templates do that drop the reasoning of all but the last answer."""
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]"
        "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )

    assert "Six.;" in answers(TURNS, tokenizer)[-1]
    assert "Four.;" == answers(TURNS, tokenizer)[0]


CALL = {"type": "function", "function": {"name": "search", "arguments": {"city": "Rome", "days": 2}}}


def offered(parameters: object, **more: str) -> list[dict[str, object]]:
    return [{"type": "function", "function": {"name": "search", "parameters": parameters, **more}}]


def test_the_built_in_template_writes_calls_as_hermes_models_do(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "user", "content": "How warm?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "21"},
        {"role": "assistant", "content": "I look again.", "tool_calls": [CALL, CALL]},
    ]

    text, spans = render_chat(messages, tokenizer)

    call = '<tool_call>\n{"name": "search", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>'
    assert [f"{call}<|end|>\n", f"I look again.\n{call}\n{call}<|end|>\n"] == [text[slice(*span)] for span in spans]
    assert "<|tool|>\n21<|end|>\n" in text


@pytest.mark.parametrize(
    "parameters, expected",
    [
        (None, "search {}\n"),
        ({"type": "object", "properties": {}}, "search {}\n"),
        (
            {
                "type": "object",
                "properties": {"to": {"type": "string"}, "n": {"type": "integer"}},
                "required": ["to"],
            },
            "search {to: string, n?: integer}\n",
        ),
        ({"type": "object", "properties": {"unit": {"enum": ["c", 1]}}}, 'search {unit?: "c" or 1}\n'),
        (
            {
                "type": "object",
                "properties": {"on": {"type": "array", "items": {"type": "string", "format": "date"}}},
            },
            "search {on?: list of date}\n",
        ),
        (
            {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}},
            'search {n?: {"type": "integer", "maximum": 9}}\n',
        ),
        ({"type": ["object", "null"]}, 'search {"type": ["object", "null"]}\n'),
        (
            {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}},
            'search {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}\n',
        ),
        ({"$ref": "#/$defs/a", "$defs": {"a": {}}}, 'search {"$ref": "#/$defs/a", "$defs": {"a": {}}}\n'),
    ],
)
def test_the_built_in_template_says_a_schema_in_short_or_as_it_is(
    tokenizer: PreTrainedTokenizerFast, parameters: object, expected: str
) -> None:
    tools = offered(parameters)

    text = render_question([{"role": "user", "content": "How warm?"}], tokenizer, tools=tools)

    assert f"<|tools|>\n{expected}<|end|>\n<|user|>\nHow warm?<|end|>\n<|assistant|>\n" == text


def test_the_built_in_template_needs_no_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    tools = offered(None, description="Search the weather.")

    expected, _ = render_chat(TURNS, tokenizer, tools=tools)

    assert "search {} Search the weather.\n" in expected
    assert expected == render_builtin(TURNS, tools)


def test_a_tokenizers_own_template_gets_the_tools(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ tools[0].function.name }}:{{ messages | length }}"

    assert "search:5" == render_question(TURNS, tokenizer, tools=offered(None))
