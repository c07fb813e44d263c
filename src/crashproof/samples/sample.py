"""One sample in the one form that recipes read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crashproof.samples.messages import REASONING_NOTE, read_messages
from crashproof.samples.problems import InvalidSample, LeftOut
from crashproof.samples.rules import SampleRules
from crashproof.samples.thoughts import THOUGHT_FIELDS, split_thoughts, thoughts_beside, with_thoughts
from crashproof.samples.tools import read_tools

__all__ = ["Fields", "ReadSample", "answered", "chat", "require_learned", "without"]

Fields = Mapping[str, Any]
_SPANS_HINT = "Give integration_spans beside an answer that is text, without thoughts in it."


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSample:
    """What a line says."""

    fields: dict[str, Any]
    """`text`; or `prompt` and `answer`; or `messages` with, where there are some, `tools`, and `unlearned`, the
    indices of the assistant's messages that are context only, and `refusals`, those of them that refuse. Beside them
    whatever else the line has."""
    notes: frozenset[str] = field(default_factory=frozenset)
    """What was read otherwise than it is written."""


def chat(
    messages: list[Any], tools: object, others: dict[str, Any], rules: SampleRules, *, learned_from: int = 0
) -> ReadSample:
    """A conversation of which the assistant's messages from index `learned_from` on are learned.

    Raises:
        InvalidSample, LeftOut: See `read_messages` and `read_tools`.
    """
    read = read_messages(messages, rules)
    offered = read_tools(tools)
    # One message can become several, so those before it are read alone to be counted.
    num_before = len(read_messages(messages[:learned_from], rules).messages) if learned_from else 0
    before = {index for index in range(num_before) if read.messages[index]["role"] == "assistant"}
    unlearned = sorted({*read.unlearned, *before})
    _require_same_text(messages, read.messages[-1]["content"], others)
    fields = {"messages": read.messages} | ({"tools": offered} if offered else {})
    marks = {name: value for name, value in (("unlearned", unlearned), ("refusals", read.refusals)) if value}
    return ReadSample(fields=fields | marks | others, notes=frozenset(read.notes))


def answered(prompt: object, answer: object, others: dict[str, Any], rules: SampleRules) -> ReadSample:
    """A prompt and its answer, which is tokenized as it stands behind it."""
    beside = thoughts_beside(others)
    inline, text = split_thoughts(answer) if isinstance(answer, str) else ("", answer)
    thoughts = beside or inline
    if rules.learns_reasoning and isinstance(text, str) and text.strip():
        text = with_thoughts(thoughts, text)
    notes = frozenset({REASONING_NOTE} if thoughts and not rules.learns_reasoning else ())
    given = {name: value for name, value in (("prompt", prompt), ("answer", text)) if value is not None}
    return ReadSample(fields=given | without(others, THOUGHT_FIELDS), notes=notes)


def without(fields: Fields, names: Iterable[str]) -> dict[str, Any]:
    """The fields that are not named."""
    left_out = set(names)
    return {name: value for name, value in fields.items() if name not in left_out}


def require_learned(fields: Fields, indices: Iterable[int]) -> None:
    """Require that one of these messages is to be learned.

    Raises:
        LeftOut: None is; says why.
    """
    wanted = set(indices)
    if wanted - set(fields.get("unlearned", ())):
        return
    if wanted & set(fields.get("refusals", ())):
        raise LeftOut("the assistant refuses", "Set data.learn_refusals to true to learn them.")
    raise LeftOut("no answer is to be learned", "Its weight is 0, or it is empty.")


def _require_same_text(messages: Any, text: object, others: Fields) -> None:
    """Spans count characters of the answer as it is written."""
    if others.get("integration_spans") and messages[-1].get("content") != text:
        raise InvalidSample('"integration_spans" count in an answer that is read otherwise than written', _SPANS_HINT)
