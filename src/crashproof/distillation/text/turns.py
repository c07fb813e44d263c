"""Assistant's turns in rendered conversations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Render", "locate_turns"]

Messages = list[dict[str, Any]]

Render = Callable[[Messages, bool], str]
"""Renders messages, with or without the generation prompt; raises ValueError if the template refuses them."""

_MARK = "crashproofanswer"
_REWRITES = "the chat template rewrites earlier messages, so the answer cannot be found in its text"


def locate_turns(messages: Messages, render: Render) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation, and find the characters of each assistant's turn in it.

    Templates open a thought in the generation prompt, drop thoughts of earlier turns, or show tools before the last
    question alone. So a turn is looked for by the header that the generation prompt shares with a rendered turn, and
    if there is none, by what a marker in place of the answer shows.

    Raises:
        ValueError: The template refuses the messages, or a turn cannot be found.
    """
    text = render(messages, False)
    spans: list[tuple[int, int]] = []
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            turn = _Turn(text, messages, place, render)
            start = turn.start(after=spans[-1][1] if spans else 0)
            end = turn.end(start)
            if end == start and (message.get("content") or message.get("tool_calls")):
                raise ValueError("the chat template drops an answer, so it cannot be found in its text")
            spans.append((start, end))
    return text, spans


class _Turn:
    """One turn of the assistant in the text of the whole conversation."""

    def __init__(self, text: str, messages: Messages, place: int, render: Render) -> None:
        self._text = text
        self._messages = messages
        self._before = messages[:place]
        self._message = messages[place]
        self._behind = messages[place + 1 :]
        self._render = render

    def start(self, *, after: int) -> int:
        """Where the turn begins behind its header; `after` is where the turn before it ends."""
        prompt = self._try(self._before, True)
        if prompt is not None and after <= len(prompt) and self._text.startswith(prompt):
            return len(prompt)
        bare = self._try(self._before, False)
        if prompt is not None and bare is not None:
            for header in self._headers(prompt, bare):
                start = self._behind_header(header, bare, after)
                if start is not None:
                    return start
        start = self._start_of_marked()
        if start is None or start < after:
            raise ValueError(_REWRITES)
        return start

    def end(self, start: int) -> int:
        """Where the turn ends, behind its end mark."""
        if not self._behind:
            return len(self._text)
        after = self._try([*self._before, self._message], False)
        if after is not None and len(after) >= start and self._text.startswith(after):
            return len(after)
        end = self._end_of_call(start, after) if self._message.get("tool_calls") else self._end_of_marked(start)
        if end is None:
            raise ValueError(_REWRITES)
        return end

    def _headers(self, prompt: str, bare: str) -> Iterator[str]:
        """What the generation prompt has in common with an answer that is the last one, or an earlier one."""
        answer = {"role": "assistant", "content": _MARK}
        for behind in ([], [{"role": "user", "content": "-"}]):
            marked = self._try([*self._before, answer, *behind], False)
            if marked is not None:
                header = prompt[: _common_length(prompt, marked)]
                if header.startswith(bare) and len(header) > len(bare):
                    yield header

    def _behind_header(self, header: str, bare: str, after: int) -> int | None:
        """The end of a header in the text, even if messages before it are written differently there."""
        if self._text.startswith(header):
            return len(header)
        if self._text.startswith(bare):
            # The place is known, and something else stands there.
            return None
        own = header[len(bare) :]
        marked = self._marked_text()
        # The last header before the answer is its own: an earlier one can stand in the user's words.
        place = -1 if marked is None else marked.rfind(own, after, marked.find(_MARK))
        is_same = place >= 0 and marked is not None and marked[: place + len(own)] == self._text[: place + len(own)]
        return place + len(own) if is_same else None

    def _start_of_marked(self) -> int | None:
        """Where a marker in place of the answer begins, if the text before it stays the same."""
        marked = self._marked_text()
        place = -1 if marked is None else marked.find(_MARK)
        return place if marked is not None and place >= 0 and self._text.startswith(marked[:place]) else None

    def _end_of_marked(self, start: int) -> int | None:
        """The end of an answer, by what stands behind a marker in its place."""
        marked = self._marked_text()
        alone = self._try([*self._before, self._message | {"content": _MARK}], False)
        if marked is None or alone is None or _MARK not in marked:
            return None
        behind, end_mark = marked.rpartition(_MARK)[2], alone.rpartition(_MARK)[2]
        end = len(self._text) - len(behind)
        if end < start or not self._text.endswith(behind):
            return None
        return end + _common_length(behind, end_mark)

    def _end_of_call(self, start: int, alone: str | None) -> int | None:
        """The end of a turn whose last words are the arguments of a call."""
        arguments = self._message["tool_calls"][-1]["function"]["arguments"]
        words = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        place = self._text.find(words, start)
        if place < 0 or alone is None:
            return None
        end = place + len(words)
        return end + _common_length(self._text[end:], alone.rpartition(words)[2])

    def _marked_text(self) -> str | None:
        """The whole conversation with a marker in place of the answer."""
        return self._try([*self._before, self._message | {"content": _MARK}, *self._behind], False)

    def _try(self, messages: Messages, adds_prompt: bool) -> str | None:
        """The text of a part of the conversation; None if the template refuses it."""
        try:
            return self._render(messages, adds_prompt)
        except ValueError:
            return None


def _common_length(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)
