"""Chat templates: conversations as text."""

from __future__ import annotations

import json
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from crashproof.distillation.text.chat_template import BUILTIN_TEMPLATE
from crashproof.samples.thoughts import with_thoughts
from crashproof.samples.tools import Tools

__all__ = [
    "BUILTIN_TEMPLATE",
    "end_of_turn",
    "render_builtin",
    "render_chat",
    "render_question",
    "render_text",
]

_THOUGHTS = "reasoning_content"


def render_chat(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, *, tools: Tools | None = None
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation, and locate the assistant's turns in the text.

    A turn spans what the template adds for it after the generation prompt, including its end mark. The arguments of a
    call are an object, as templates expect them.

    Raises:
        ValueError: The template refuses the messages, or rewrites earlier ones.
    """
    text = render_text(messages, tokenizer, tools=tools)
    spans = []
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            before = render_text(messages[:place], tokenizer, tools=tools, adds_prompt=True)
            after = render_text(messages[: place + 1], tokenizer, tools=tools)
            spans.append((len(before), _end_of_turn(text, before, after, _last_words(message))))
    return text, spans


def render_question(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, *, tools: Tools | None = None
) -> str:
    """Render a conversation up to the beginning of the assistant's answer.

    Raises:
        ValueError: The template refuses the messages.
    """
    return render_text(messages, tokenizer, tools=tools, adds_prompt=True)


def render_text(
    messages: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerFast,
    *,
    tools: Tools | None = None,
    adds_prompt: bool = False,
) -> str:
    """Render a conversation with the tokenizer's chat template, or the built-in one.

    Raises:
        ValueError: The template refuses the messages.
    """
    template = tokenizer.chat_template or BUILTIN_TEMPLATE
    try:
        rendered = tokenizer.apply_chat_template(
            _with_visible_thoughts(messages, str(template)),
            tools=tools,  # type: ignore[arg-type]  # Its type lacks plain lists of objects.
            chat_template=template,
            tokenize=False,
            add_generation_prompt=adds_prompt,
        )
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template refuses the messages ({error})") from error
    return str(rendered)


def render_builtin(messages: list[dict[str, Any]], tools: Tools) -> str:
    """Render a conversation with the built-in template, without a tokenizer."""
    # A tuple of the texts and the positions of the assistant's turns, whatever its annotation says.
    shown = _with_visible_thoughts(messages, BUILTIN_TEMPLATE)
    rendered: Any = render_jinja_template([shown], tools=tools, chat_template=BUILTIN_TEMPLATE)  # type: ignore[arg-type]
    return str(rendered[0][0])


def end_of_turn(tokenizer: PreTrainedTokenizerFast) -> str:
    """The mark that the chat template writes after an answer; empty if there is none."""
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    try:
        text = render_text(messages, tokenizer)
    except ValueError:
        # The template needs other messages.
        return ""
    return text.rpartition("answer")[2].strip()


def _with_visible_thoughts(messages: list[dict[str, Any]], template: str) -> list[dict[str, Any]]:
    """Messages with their thoughts in the content, for a template that does not write them itself."""
    if _THOUGHTS in template:
        return messages
    return [
        {name: value for name, value in message.items() if name != _THOUGHTS}
        | {"content": with_thoughts(message[_THOUGHTS], message["content"] or "")}
        if message.get(_THOUGHTS)
        else message
        for message in messages
    ]


def _last_words(message: dict[str, Any]) -> str:
    """The last text of a turn before its end mark."""
    calls = message.get("tool_calls")
    if calls:
        return json.dumps(calls[-1]["function"]["arguments"], ensure_ascii=False)
    return str(message["content"])


def _end_of_turn(text: str, before: str, after: str, content: str) -> int:
    """The end of a turn in the whole text; templates may render the last turn differently."""
    if text.startswith(before):
        if text.startswith(after):
            return len(after)
        start = text.find(content.strip(), len(before))
        if start >= 0:
            end = start + len(content.strip())
            mark = after[after.rfind(content.strip()) + len(content.strip()) :]
            return end + len(mark) if text.startswith(mark, end) else end
    raise ValueError("the chat template rewrites earlier messages, so the answer cannot be found in its text")
