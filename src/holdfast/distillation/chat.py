"""Conversations as text, the answers marked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from holdfast.distillation.corpus import Conversation

__all__ = ["CHAT_TEMPLATE", "Segment", "chat_segments", "renderer"]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
"""For tokenizers that bring none."""

Render = Callable[[list[dict[str, str]], bool], str]
"""(messages, whether the assistant is about to speak) → text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A piece of a sample that is learned, or that is not."""

    text: str
    is_answer: bool


def renderer(tokenizer: PreTrainedTokenizerBase) -> Render:
    """The tokenizer's own chat template, or ours where it has none."""
    template = None if tokenizer.chat_template else CHAT_TEMPLATE

    def render(messages: list[dict[str, str]], assistant_is_next: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=assistant_is_next, chat_template=template
            )
        )

    return render


def chat_segments(conversation: Conversation, render: Render) -> list[Segment]:
    """The conversation as the template writes it; what follows an assistant's cue up to its end is answer.

    Some templates write an earlier turn differently once others follow. Such a turn is context only.
    """
    messages = conversation.messages
    whole = render(messages, False)
    segments: list[Segment] = []
    done = 0
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        cue, spoken = render(messages[:number], True), render(messages[: number + 1], False)
        if whole.startswith(spoken) and spoken.startswith(cue) and len(cue) >= done:
            segments.append(Segment(text=whole[done : len(cue)], is_answer=False))
            segments.append(Segment(text=whole[len(cue) : len(spoken)], is_answer=True))
            done = len(spoken)
    segments.append(Segment(text=whole[done:], is_answer=False))
    return [segment for segment in segments if segment.text]
