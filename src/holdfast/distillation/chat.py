"""Conversations as text."""

from __future__ import annotations

from typing import Any

import jinja2
from transformers import PreTrainedTokenizerFast

__all__ = ["BUILTIN_TEMPLATE", "render_chat"]

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
    spans = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(messages[:place], tokenizer, adds_prompt=True)
        after = _render(messages[: place + 1], tokenizer, adds_prompt=False)
        if not after.startswith(before):
            raise ValueError("the chat template rewrites earlier messages, so the answer cannot be found in its text")
        spans.append((len(before), len(after)))
    return _render(messages, tokenizer, adds_prompt=False), spans


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
