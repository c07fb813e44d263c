"""Conversations as text."""

from __future__ import annotations

import json
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from crashproof.distillation.text.chat_template import BUILTIN_TEMPLATE

__all__ = ["BUILTIN_TEMPLATE", "Tools", "render_builtin", "render_chat", "render_question", "render_text"]

Tools = list[dict[str, Any]]
"""What is offered, as `{"type": "function", "function": {"name", "description", "parameters"}}`."""


def render_chat(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, *, tools: Tools | None = None
) -> tuple[str, list[tuple[int, int]]]:
    """A conversation through the tokenizer's chat template, and the characters of the assistant's turns.

    A turn spans what the template adds for it behind the prompt for generation, its end mark included. The arguments
    of a call are an object here, as templates expect them.

    Raises:
        ValueError: the template refuses the messages, or does not only append.
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
    """A conversation through the tokenizer's chat template, up to where the assistant's answer begins.

    Raises:
        ValueError: the template refuses the messages.
    """
    return render_text(messages, tokenizer, tools=tools, adds_prompt=True)


def render_text(
    messages: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerFast,
    *,
    tools: Tools | None = None,
    adds_prompt: bool = False,
) -> str:
    """A conversation through the tokenizer's chat template.

    Raises:
        ValueError: the template refuses the messages.
    """
    try:
        rendered = tokenizer.apply_chat_template(
            messages,
            tools=tools,  # type: ignore[arg-type]  # transformers leaves out plain lists of objects.
            chat_template=tokenizer.chat_template or BUILTIN_TEMPLATE,
            tokenize=False,
            add_generation_prompt=adds_prompt,
        )
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template refuses the messages ({error})") from error
    return str(rendered)


def render_builtin(messages: list[dict[str, Any]], tools: Tools) -> str:
    """A conversation through the built-in template, for which no tokenizer is needed."""
    rendered: Any = render_jinja_template([messages], tools=tools, chat_template=BUILTIN_TEMPLATE)  # type: ignore[arg-type]
    # The texts, and where the assistant speaks in them.
    return str(rendered[0][0])


def end_of_turn(tokenizer: PreTrainedTokenizerFast) -> str:
    """The mark that the chat template writes behind an answer; empty where there is none to be seen."""
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    try:
        text = render_text(messages, tokenizer)
    except ValueError:
        # It wants to be asked otherwise.
        return ""
    return text.rpartition("answer")[2].strip()


def _last_words(message: dict[str, Any]) -> str:
    """What stands last in a turn, before its end mark."""
    calls = message.get("tool_calls")
    if calls:
        return json.dumps(calls[-1]["function"]["arguments"], ensure_ascii=False)
    return str(message["content"])


def _end_of_turn(text: str, before: str, after: str, content: str) -> int:
    """Where a turn ends in the whole text; templates may write a turn otherwise while it is the last one."""
    if text.startswith(before):
        if text.startswith(after):
            return len(after)
        start = text.find(content.strip(), len(before))
        if start >= 0:
            end = start + len(content.strip())
            mark = after[after.rfind(content.strip()) + len(content.strip()) :]
            return end + len(mark) if text.startswith(mark, end) else end
    raise ValueError("the chat template rewrites earlier messages, so the answer cannot be found in its text")
