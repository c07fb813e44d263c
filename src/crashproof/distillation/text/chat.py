"""Chat templates: conversations as text."""

from __future__ import annotations

import json
import logging
import re
from datetime import date
from functools import lru_cache
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from crashproof.distillation.text.chat_template import BUILTIN_TEMPLATE
from crashproof.distillation.text.tokenizer import opening_text
from crashproof.distillation.text.turns import locate_turns
from crashproof.samples.thoughts import with_thoughts
from crashproof.samples.tools import Tools

__all__ = [
    "BUILTIN_TEMPLATE",
    "FIXED_DATE",
    "end_of_turn",
    "render_builtin",
    "render_chat",
    "render_question",
    "render_text",
    "split_at_answer",
]

log = logging.getLogger("crashproof")

FIXED_DATE = date(2024, 7, 26)
"""What a template that asks for today's date is told; Llama's templates have it as their default."""

_DATE_NOW = re.compile(r"strftime_now\(\s*([\"'])(.*?)\1\s*\)")

_TEMPLATE_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""A template is a program: with messages that it does not expect, it fails like one."""
_THOUGHTS = "reasoning_content"


def render_chat(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, *, tools: Tools | None = None
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation, and locate the assistant's turns in the text.

    A turn spans what the template writes for it behind the header that it shares with the generation prompt,
    including its end mark. The arguments of a call are an object, as templates expect them.

    Raises:
        ValueError: The template refuses the messages, or rewrites earlier ones.
    """
    return locate_turns(
        messages, lambda part, adds_prompt: render_text(part, tokenizer, tools=tools, adds_prompt=adds_prompt)
    )


def split_at_answer(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, *, tools: Tools | None = None
) -> tuple[str, str, str]:
    """Render a conversation that ends with an answer, and split it: before the answer, the answer, its end mark.

    Templates strip the white space around an answer, and the thoughts before it.

    Raises:
        ValueError: The template refuses the messages, or changes the answer.
    """
    text, spans = render_chat(messages, tokenizer, tools=tools)
    start, end = spans[-1]
    content = str(messages[-1].get("content") or "")
    for said in (content, content.strip(), content.rpartition("</think>")[2].strip()):
        place = text.rfind(said, start, end) if said else start
        if place >= 0:
            return text[:place], said, text[place + len(said) : end]
    raise ValueError("the chat template rewrites the answer")


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
    try:
        return _apply_template(messages, tokenizer, tools, adds_prompt)
    except TypeError:
        # Some templates (DeepSeek's) write the arguments of a call as they are, and so need them as text.
        messages = [_with_arguments_as_text(message) for message in messages]
    except _TEMPLATE_ERRORS as error:
        raise _refused(error) from error
    try:
        return _apply_template(messages, tokenizer, tools, adds_prompt)
    except _TEMPLATE_ERRORS as error:
        raise _refused(error) from error


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


def _apply_template(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, tools: Tools | None, adds_prompt: bool
) -> str:
    template = _template_of(tokenizer, tools)
    rendered = tokenizer.apply_chat_template(
        _with_visible_thoughts(messages, template),
        tools=tools,  # type: ignore[arg-type]  # Its type lacks plain lists of objects.
        chat_template=template,
        tokenize=False,
        add_generation_prompt=adds_prompt,
    )
    return str(rendered)


def _template_of(tokenizer: PreTrainedTokenizerFast, tools: Tools | None) -> str:
    """The tokenizer's template for these tools, or the built-in one; none of them depends on today's date."""
    if tokenizer.chat_template:
        return _with_fixed_date(tokenizer.get_chat_template(tools=tools))
    # As with plain text, the tokenizer's own first token stands in front.
    return _spelled_as_text(opening_text(tokenizer)) + BUILTIN_TEMPLATE


def _spelled_as_text(text: str) -> str:
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


@lru_cache(maxsize=16)
def _with_fixed_date(template: str) -> str:
    """Replace today's date: a run that resumes tomorrow must read the same text."""
    fixed = _DATE_NOW.sub(lambda call: json.dumps(FIXED_DATE.strftime(call[2])), template)
    if fixed != template:
        log.info("The chat template writes today's date; training reads %s in its place.", FIXED_DATE.isoformat())
    return fixed


def _with_arguments_as_text(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return message
    return message | {"tool_calls": [call | {"function": _as_text(call["function"])} for call in calls]}


def _as_text(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments")
    is_text = isinstance(arguments, str)
    return function | {"arguments": arguments if is_text else json.dumps(arguments, ensure_ascii=False)}


def _refused(error: Exception) -> ValueError:
    return ValueError(f"the chat template refuses the messages ({error})")
