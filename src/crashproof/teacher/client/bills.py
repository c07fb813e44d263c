"""What an answer costs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum

import msgspec

from crashproof.errors import ConfigError
from crashproof.formatting import as_dollars_text
from crashproof.notices import Notices
from crashproof.rules.requests import JsonObject
from crashproof.teacher.client.prices import Price
from crashproof.teacher.replies.choices import generated_texts
from crashproof.teacher.replies.usage import PartialUsage, Usage, reported_cost

__all__ = ["Billing"]

log = logging.getLogger("crashproof")

_BYTES_PER_TOKEN = 2
"""Prose has four or five, code and numbers two or three: an estimate is rather too high than too low."""
_MOST_BYTES_OF_A_TOKEN = 64
"""Upper bound of bytes per token: an answer with more was miscounted by its server."""
_TOKENS_OF_A_MESSAGE = 8
_BYTES_OF_A_FILE = 2048
"""Stands for an image or a recording within a message, whose bytes are not its tokens."""
_MOST_DIFFERENCE = Decimal("0.01")
"""Between the provider's own cost and the price table's, as a share."""


class _Doubt(StrEnum):
    ESTIMATED = "estimated"
    BEYOND_LIMITS = "beyond the limits of its request"
    OTHER_COST = "another cost than the price table's"


class Billing:
    """Prices the answers of one model; what has to be guessed is logged once and counted."""

    def __init__(self, price: Price) -> None:
        self._price = price
        self._notices = Notices()

    def worst_case(self, body: JsonObject) -> Decimal:
        """The most that a request can cost; 0 if nothing bounds it."""
        try:
            return self._price.worst_case(body)
        except ConfigError:
            return Decimal(0)

    def cost(self, response: Mapping[str, object], body: JsonObject, *, most: Decimal) -> Decimal:
        """The cost of an answer by its reported usage; what that does not tell is estimated from text.

        Args:
            response: The response as received.
            body: The body of its request.
            most: The worst case of the request, which bounds an estimate; 0 if nothing bounds it.
        """
        usage, is_estimated = _usage_of(response, body)
        own = reported_cost(response)
        if self._price.is_free:
            return own or Decimal(0)
        cost = self._price.cost(usage)
        if not is_estimated:
            self._note_limits(usage, body)
            return cost if own is None else self._larger(own, cost)
        if own is not None:
            return own
        self._note_estimate(response)
        return min(cost, most) if most else cost

    def cost_of_damaged(self, body: JsonObject, num_bytes: int, *, most: Decimal) -> Decimal:
        """The cost of an answer that cannot be parsed: its worst case, or an estimate if nothing bounds it."""
        said = -(-num_bytes // _BYTES_PER_TOKEN)
        return most or self._price.cost(Usage(prompt_tokens=_prompt_estimate(body), completion_tokens=said))

    def report(self) -> None:
        """Log how many answers had to be guessed."""
        for doubt, count in self._notices.counts.items():
            if count > 1:
                log.warning("The usage of %d answers was %s.", count, doubt)

    def _note_estimate(self, response: Mapping[str, object]) -> None:
        self._notices.warn(
            _Doubt.ESTIMATED,
            "The teacher reports no usage that can be true (usage: %.200s). The cost of this answer, and of any "
            "other like it, is estimated from its text, at %d bytes a token.",
            _as_text(response.get("usage")),
            _BYTES_PER_TOKEN,
        )

    def _note_limits(self, usage: Usage, body: JsonObject) -> None:
        if not _is_within_limits(usage, body, self._price):
            self._notices.warn(
                _Doubt.BEYOND_LIMITS,
                "The teacher reported an implausible usage: %d prompt tokens and %d completion tokens are more than "
                "the request allows. It is booked as reported; a budget does not bound such a teacher.",
                usage.prompt_tokens,
                usage.completion_tokens,
            )

    def _larger(self, own: Decimal, by_table: Decimal) -> Decimal:
        """The provider's own cost; the price table's if that is larger."""
        if abs(own - by_table) > _MOST_DIFFERENCE * max(own, by_table):
            self._notices.warn(
                _Doubt.OTHER_COST,
                "The provider reports a cost of %s for an answer that costs %s by the price table. The larger one is "
                "booked, here and for any other like it: correct the table (--prices, teacher.prices).",
                as_dollars_text(own),
                as_dollars_text(by_table),
            )
        return max(own, by_table)


def _usage_of(response: Mapping[str, object], body: JsonObject) -> tuple[Usage, bool]:
    """The tokens of an answer, and whether any of them had to be estimated."""
    reported = PartialUsage.read(response)
    num_bytes = sum(_num_text_bytes(said) for said in generated_texts(response))
    completion = reported.completion_tokens
    if completion is None or completion * _MOST_BYTES_OF_A_TOKEN < num_bytes:
        completion = None
    usage = Usage(
        prompt_tokens=reported.prompt_tokens or _prompt_estimate(body),
        cached_tokens=min(reported.cached_tokens, reported.prompt_tokens or 0),
        completion_tokens=-(-num_bytes // _BYTES_PER_TOKEN) if completion is None else completion,
        reasoning_tokens=0 if completion is None else min(reported.reasoning_tokens, completion),
    )
    return usage, completion is None or not reported.prompt_tokens


def _prompt_estimate(body: JsonObject) -> int:
    messages = body.get("messages")
    num_messages = len(messages) if isinstance(messages, list) else 1
    num_bytes = sum(_num_text_bytes(body.get(name)) for name in ("messages", "tools", "response_format"))
    return -(-num_bytes // _BYTES_PER_TOKEN) + _TOKENS_OF_A_MESSAGE * num_messages


def _num_text_bytes(value: object) -> int:
    """The UTF-8 bytes of all texts in a value."""
    if isinstance(value, str):
        return _BYTES_OF_A_FILE if value.startswith("data:") else len(value.encode("utf-8", "replace"))
    if isinstance(value, Mapping):
        return sum(_num_text_bytes(each) + len(str(name)) for name, each in value.items())
    return sum(map(_num_text_bytes, value)) if isinstance(value, list) else 0


def _is_within_limits(usage: Usage, body: JsonObject, price: Price) -> bool:
    try:
        most_tokens = price.most_completion_tokens(body)
    except ConfigError:
        most_tokens = None
    most_prompt = price.most_prompt_tokens(body)
    is_prompt_within = most_prompt is None or usage.prompt_tokens <= most_prompt
    return is_prompt_within and (most_tokens is None or usage.completion_tokens <= most_tokens)


def _as_text(value: object) -> str:
    return msgspec.json.encode(value).decode()
