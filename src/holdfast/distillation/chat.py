"""Conversations as text."""

from __future__ import annotations

from typing import Any

import jinja2
from transformers import PreTrainedTokenizerFast

__all__ = ["BUILTIN_TEMPLATE", "render_chat", "render_question"]

BUILTIN_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""For tokenizers that bring no template of their own."""


def render_chat(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast
) -> tuple[str, list[tuple[int, int]]]:
    """A conversation through the tokenizer's chat template, and the characters of the assistant's turns.

    A turn spans what the template adds for it behind the prompt for generation, its end mark included.

    Raises:
        ValueError: the template refuses the messages, or does not only append.
    """
    text = _render(messages, tokenizer, adds_prompt=False)
    spans = []
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _render(messages[:place], tokenizer, adds_prompt=True)
            after = _render(messages[: place + 1], tokenizer, adds_prompt=False)
            spans.append((len(before), _end_of_turn(text, before, after, message["content"])))
    return text, spans


def render_question(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast) -> str:
    """A conversation through the tokenizer's chat template, up to where the assistant's answer begins.

    Raises:
        ValueError: the template refuses the messages.
    """
    return _render(messages, tokenizer, adds_prompt=True)


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


def _render(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, *, adds_prompt: bool) -> str:
    try:
        rendered = tokenizer.apply_chat_template(
            messages,
            chat_template=tokenizer.chat_template or BUILTIN_TEMPLATE,
            tokenize=False,
            add_generation_prompt=adds_prompt,
        )
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template refuses the messages ({error})") from error
    return str(rendered)
