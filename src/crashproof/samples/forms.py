"""Forms of a line, one in each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from crashproof.samples.content import UNREADABLE
from crashproof.samples.messages import is_turn
from crashproof.samples.preferences import (
    is_judged,
    is_openai_pair,
    is_pair,
    read_judged,
    read_openai_pair,
    read_pair,
)
from crashproof.samples.problems import InvalidSample, LeftOut
from crashproof.samples.rules import Preferences, SampleRules
from crashproof.samples.sample import Fields, ReadSample, answered, chat, without
from crashproof.samples.tools import parse_json_text

__all__ = ["FORMS", "Form", "read_sample"]

_HINT = 'A line is {"text": …}, {"prompt": …, "teacher_text": …}, {"messages": […]}, or another form of the guide.'
_MEDIA_FIELDS = ("images", "image", "audios", "audio", "videos", "video")
_UNREAD_NOTE = "a quality or a rejected answer is not read, as this recipe judges none"
_ANSWER_NAMES = ("teacher_text", "answer", "completion")
_QUESTIONS, _REPLIES = ("question", "query"), ("answer", "response")
_NESTED = ("messages", "conversations", "conversation", "prompt", "completion", "chosen", "rejected")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A form in which people have their data."""

    name: str
    """As the count of a file says it."""
    matches: Callable[[Fields], bool]
    read: Callable[[Fields, SampleRules], ReadSample]


def read_sample(line: dict[str, Any], rules: SampleRules) -> tuple[Form, ReadSample]:
    """The form of a line, and what it says.

    Raises:
        InvalidSample: It has no known form, or is malformed.
        LeftOut: It cannot or shall not be learned.
    """
    line = _with_lists(line)
    form = next((form for form in FORMS if form.matches(line)), None)
    if form is None:
        names = ", ".join(line) or "none"
        reason = f'it needs "text", or "prompt" with "teacher_text", or "messages"; its fields are: {names}'
        raise InvalidSample(reason, _HINT)
    media = next((name for name in _MEDIA_FIELDS if line.get(name)), None)
    if media is not None and form.name != "texts":
        raise LeftOut(f"it has {media} beside its messages", UNREADABLE)
    read = form.read(line, rules)
    is_unread = rules.preferences is not Preferences.PAIRS and bool({"rejected", "quality"} & read.fields.keys())
    return form, replace(read, notes=read.notes | {_UNREAD_NOTE}) if is_unread else read


def _with_lists(line: dict[str, Any]) -> dict[str, Any]:
    """A line as JSON would have it: tables keep lists as JSON in a cell, or as a column for each field."""
    found = {name: _as_list(line[name]) for name in _NESTED if name in line}
    return line | {name: value for name, value in found.items() if value is not line[name]}


def _as_list(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("["):
        parsed = parse_json_text(value)
        return parsed if isinstance(parsed, list) and parsed and all(map(is_turn, parsed)) else value
    if isinstance(value, dict) and is_turn(value) and all(isinstance(column, list) for column in value.values()):
        return [
            {name: each for name, each in zip(value, row, strict=True) if each is not None}
            for row in zip(*value.values(), strict=True)
        ]
    return value


def _refused(reason: str, hint: str) -> Callable[[Fields, SampleRules], ReadSample]:
    def refuse(line: Fields, rules: SampleRules) -> ReadSample:
        raise InvalidSample(reason, hint)

    return refuse


def _read_messages(line: Fields, rules: SampleRules) -> ReadSample:
    messages = line["messages"]
    others = without(line, ("messages", "tools", "functions"))
    if not isinstance(messages, list) or not messages:
        raise InvalidSample('"messages" must be a non-empty list', _HINT)
    return chat(messages, line.get("tools") or line.get("functions"), others, rules)


def _is_conversational(line: Fields) -> bool:
    return isinstance(line.get("prompt"), list) and any(name in line for name in _ANSWER_NAMES)


def _read_conversational(line: Fields, rules: SampleRules) -> ReadSample:
    prompt = line["prompt"]
    name = next(name for name in _ANSWER_NAMES if name in line)
    completion = line[name]
    turns = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    if not isinstance(turns, list) or not turns:
        raise InvalidSample(f'"{name}" must be text or a non-empty list of messages', _HINT)
    others = without(line, ("prompt", name, "tools"))
    return chat([*prompt, *turns], line.get("tools"), others, rules, learned_from=len(prompt))


def _is_prompted(line: Fields) -> bool:
    return "prompt" in line or "teacher_text" in line or ("answer" in line and not _is_question(line))


def _read_prompted(line: Fields, rules: SampleRules) -> ReadSample:
    name = next((name for name in (*_ANSWER_NAMES, "response") if name in line), None)
    answer = line.get(name) if name is not None else None
    return answered(line.get("prompt"), answer, without(line, ("prompt", name or "")), rules)


def _named_turns(line: Fields) -> list[str]:
    return [name for name, value in line.items() if isinstance(value, list) and value and all(map(is_turn, value))]


def _read_conversation(line: Fields, rules: SampleRules) -> ReadSample:
    names = _named_turns(line)
    if len(names) > 1:
        raise InvalidSample(f"it has several conversations: {', '.join(names)}", 'Name the one to learn "messages".')
    system = line.get("system") or line.get("system_prompt")
    before = [{"role": "system", "content": system}] if isinstance(system, str) else []
    others = without(line, (names[0], "system", "system_prompt", "tools", "functions"))
    return chat([*before, *line[names[0]]], line.get("tools") or line.get("functions"), others, rules)


def _is_alpaca(line: Fields) -> bool:
    return isinstance(line.get("instruction"), str) and any(isinstance(line.get(name), str) for name in _OUTPUTS)


_OUTPUTS = ("output", "response")


def _read_alpaca(line: Fields, rules: SampleRules) -> ReadSample:
    """Also with Dolly's names; the input stands below the instruction."""
    asked = [line["instruction"], line.get("input") or line.get("context")]
    messages = [{"role": "system", "content": line["system"]}] if line.get("system") else []
    for turn in line.get("history") or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise InvalidSample('"history" must be a list of pairs of a question and its answer', _HINT)
        messages += _exchange(*turn)
    name = next(name for name in _OUTPUTS if isinstance(line.get(name), str))
    messages += _exchange("\n".join(part for part in asked if part), line[name])
    others = without(line, ("instruction", "input", "context", "system", "history", "tools", name))
    return chat(messages, line.get("tools"), others, rules)


def _is_question(line: Fields) -> bool:
    return all(any(isinstance(line.get(name), str) for name in names) for names in (_QUESTIONS, _REPLIES))


def _read_question(line: Fields, rules: SampleRules) -> ReadSample:
    asked, said = (next(n for n in names if isinstance(line.get(n), str)) for names in (_QUESTIONS, _REPLIES))
    system = line.get("system") or line.get("system_prompt")
    before = [{"role": "system", "content": system}] if isinstance(system, str) else []
    others = without(line, (asked, said, "system", "system_prompt", "tools"))
    return chat([*before, *_exchange(line[asked], line[said])], line.get("tools"), others, rules)


def _exchange(asked: object, said: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


FORMS = (
    Form(
        name="results of a batch",
        matches=lambda line: "custom_id" in line and "response" in line,
        read=_refused(
            "it is a result of a batch API, which has the answer and not its prompt",
            "Join them: `crashproof generate --prompts … --read-batch RESULTS.jsonl`.",
        ),
    ),
    Form(
        name="requests of a batch",
        matches=lambda line: "custom_id" in line and "body" in line,
        read=_refused(
            "it is a request of a batch API, which has no answer",
            "Obtain the answers: `crashproof generate --prompts …`.",
        ),
    ),
    Form(
        name="completions of an API",
        matches=lambda line: isinstance(line.get("choices"), list),
        read=_refused(
            "it is a completion as an API returns it, which has the answer and not its prompt",
            'Write lines of {"messages": […]} that end with the answer.',
        ),
    ),
    Form(name="OpenAI preference pairs", matches=is_openai_pair, read=read_openai_pair),
    Form(name="preference pairs", matches=is_pair, read=read_pair),
    Form(name="judged answers", matches=is_judged, read=read_judged),
    Form(name="chats", matches=lambda line: "messages" in line, read=_read_messages),
    Form(name="chats in prompt and completion", matches=_is_conversational, read=_read_conversational),
    Form(name="prompts with answers", matches=_is_prompted, read=_read_prompted),
    Form(name="conversations", matches=lambda line: bool(_named_turns(line)), read=_read_conversation),
    Form(name="instructions", matches=_is_alpaca, read=_read_alpaca),
    Form(name="questions with answers", matches=_is_question, read=_read_question),
    Form(
        name="texts",
        matches=lambda line: isinstance(line.get("text"), str),
        read=lambda line, rules: ReadSample(fields=dict(line)),
    ),
)
"""The first form that matches is the line's."""
