"""Send a request in the form that its server takes.

Some parameters have two names, and some servers answer only as a stream, or never: what a server wants is known by
its model, or learned from its first refusal. Nothing that could change an answer is altered.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from crashproof.rules.requests import JsonObject, TeacherRequest
from crashproof.rules.secrets.texts import without_secrets
from crashproof.teacher.client.wire.refusals import rejected_parameter

__all__ = ["BodyForm", "LearnedForm", "parameter_of"]

log = logging.getLogger("crashproof")

_LONGEST_SHOWN = 300
_LIMIT, _NEW_LIMIT = "max_tokens", "max_completion_tokens"
_REASONING_MODEL = re.compile(r"(?:openai/)?(?:o[1-9]|gpt-[5-9])(?:[-.].*)?", re.IGNORECASE)
"""Models whose limit has the new name."""
_TEACHING = frozenset({400, 404, 422, 501})
"""Statuses of a refusal that may name a parameter; nothing was computed."""
_IS_NAME = re.compile(
    r"unsupported|not supported|does not support|doesn't support|unrecogni[sz]ed|unknown|unexpected|not permitted|"
    r"not allowed|extra|deprecated|use '?max_",
    re.IGNORECASE,
)
"""Words that complain of a parameter's name, not of its value."""
_ONLY_STREAMS = re.compile(
    r"only supports? (?:the )?stream|stream(?:ing)? (?:mode )?(?:is )?(?:required|only)|requires? (?:the )?stream|"
    r"(?:enable|use|set) (?:the )?[`'\"]?stream|[`'\"]?stream[`'\"]? (?:must|should|has to|needs to) be (?:set to )?"
    r"[`'\"]?true|non-?stream\w* [^.]{0,60}not (?:be )?(?:supported|allowed)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyForm:
    """How a body is sent."""

    limit_name: str | None = None
    """The name that the limit of tokens is sent under; None for the name in the request."""
    is_streamed: bool | None = None
    """Whether the answer is asked for as a stream; None for what the request says."""
    has_stream_options: bool = True
    """Whether a stream is asked to end with its usage."""

    def body_of(self, request: TeacherRequest) -> JsonObject:
        """The body to send."""
        body = dict(request.body)
        options = body.pop("stream_options", None)
        is_streamed = body.pop("stream", None) is True if self.is_streamed is None else self.is_streamed
        body.pop("stream", None)
        if is_streamed:
            body["stream"] = True
            if self.has_stream_options:
                # Without it, no stream says what it costs.
                body["stream_options"] = {**(options if isinstance(options, Mapping) else {}), "include_usage": True}
        return self._with_limit(body)

    def _with_limit(self, body: JsonObject) -> JsonObject:
        given = [name for name in (_LIMIT, _NEW_LIMIT) if name in body]
        if self.limit_name is None or len(given) != 1:
            return body
        return {self.limit_name if name in given else name: value for name, value in body.items()}


class LearnedForm:
    """The form that a server takes, as far as it is known; for one model at one address."""

    def __init__(self, model: str) -> None:
        self.current = BodyForm(limit_name=_NEW_LIMIT if _REASONING_MODEL.fullmatch(model) else None)
        self._refused: set[BodyForm] = set()

    def learn(self, status: int | None, error: Mapping[str, object], *, sent: BodyForm, body: JsonObject) -> bool:
        """Whether a request that was refused in one form is worth sending in another, which is `current` then."""
        wanted = _form_wanted(error, sent, body) if status in _TEACHING else None
        if wanted is None:
            return False
        self._refused.add(sent)
        if self.current == sent and wanted not in self._refused:
            self.current = wanted
            log.warning("The teacher refused a request: %s. %s", _message_of(error), _told(sent, wanted))
        return self.current not in self._refused


def parameter_of(request: TeacherRequest, error: Mapping[str, object]) -> str | None:
    """The parameter that an error complains of, under its name in the request."""
    body = request.body
    for other, name in ((_NEW_LIMIT, _LIMIT), (_LIMIT, _NEW_LIMIT)):
        if name in body and other not in body and rejected_parameter(error, {other: None}) == other:
            return name
    return rejected_parameter(error, body)


def _form_wanted(error: Mapping[str, object], sent: BodyForm, body: JsonObject) -> BodyForm | None:
    message = _message_of(error)
    if "stream" not in body and _ONLY_STREAMS.search(message):
        return replace(sent, is_streamed=True)
    name = rejected_parameter(error, body)
    if name is None or not _IS_NAME.search(message):
        return None
    if name == _LIMIT:
        return replace(sent, limit_name=None if sent.limit_name == _LIMIT else _NEW_LIMIT)
    if name == _NEW_LIMIT:
        return replace(sent, limit_name=None if sent.limit_name == _NEW_LIMIT else _LIMIT)
    if name == "stream_options":
        return replace(sent, has_stream_options=False)
    return replace(sent, is_streamed=False) if name == "stream" else None


def _told(sent: BodyForm, wanted: BodyForm) -> str:
    if wanted.limit_name != sent.limit_name:
        name = wanted.limit_name or "it is named in the request"
        return f"The limit of tokens is sent as {name} from here on; the answers are stored as before."
    if wanted.has_stream_options != sent.has_stream_options:
        return "Streams are no longer asked for their usage, so that the cost of each is estimated."
    return f"Answers are asked for {'as a stream' if wanted.is_streamed else 'in one piece'} from here on."


def _message_of(error: Mapping[str, object]) -> str:
    message = error.get("message") or error.get("detail") or ""
    return without_secrets(str(message))[:_LONGEST_SHOWN].rstrip(".")
