"""Prices of models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation
from pathlib import Path
from typing import TypeVar

import msgspec
import yaml

from crashproof.errors import ConfigError, UnknownPrice
from crashproof.rules.requests import JsonObject
from crashproof.rules.spending import as_dollars
from crashproof.strict_yaml import TextLoader
from crashproof.teacher.replies.usage import MOST_TOKENS, Usage

__all__ = ["UNPRICED", "Price", "PriceTable", "price_of"]

_SHIPPED_TABLE = Path(__file__).with_name("prices.yaml")
_SNAPSHOT = re.compile(r"(?P<model>.+)-\d{4}-\d{2}-\d{2}", re.ASCII)
_KINDS = ("input", "cached_input", "output", "reasoning")
_EXACT = Context(prec=30, traps=[Inexact, InvalidOperation])
_SIX_DECIMALS = Decimal("1e-6")

_TOKENS_OF_A_CHAT = 64
"""What a template may add around all messages: a date, a default system prompt."""
_TOKENS_OF_A_MESSAGE = 16
"""What a template adds to one message: its role, its delimiters."""
_TOKENS_AROUND_TOOLS = 256
"""Instructions that a template adds for tool use."""

_UNBOUNDED = "The cost of a request has no upper bound"
_TEXT_PARTS = frozenset({"refusal", "text"})
_PRICED_ELSEWHERE = ("audio", "prediction", "web_search_options")
_TIERS_WITHIN_LIST_PRICE = (None, "auto", "default", "flex")

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def _picodollars(dollars_per_million: Decimal) -> int:
    """The price of one token."""
    return int(_EXACT.scaleb(_EXACT.quantize(dollars_per_million, _SIX_DECIMALS), 6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a model costs, in dollars per million tokens, each with at most six decimals.

    So one token costs a whole number of picodollars (1e-12 dollars), and every cost is exact.

    Raises:
        ValueError: a price is negative, not finite, or finer than that.
    """

    input: Decimal
    cached_input: Decimal
    output: Decimal
    reasoning: Decimal
    batch_share: Decimal = Decimal(1)
    """The share of each price that is charged in a batch."""
    max_output_tokens: int | None = None
    """The longest answer that the model can give, if known."""

    def __post_init__(self) -> None:
        if not self.batch_share.is_finite() or not 0 < self.batch_share <= 1:
            raise ValueError(f"batch_share must be above 0 and at most 1, got {self.batch_share}")
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            raise ValueError(f"max_output_tokens must be at least 1, got {self.max_output_tokens}")
        for kind in _KINDS:
            self._check(kind)

    @property
    def is_free(self) -> bool:
        """Whether all prices are 0."""
        return not any(getattr(self, kind) for kind in _KINDS)

    def in_batch(self) -> Price:
        """The price in a batch; cached input is discounted twice, although some providers discount it once."""
        return Price(
            input=_EXACT.multiply(self.input, self.batch_share),
            cached_input=_EXACT.multiply(self.cached_input, self.batch_share),
            output=_EXACT.multiply(self.output, self.batch_share),
            reasoning=_EXACT.multiply(self.reasoning, self.batch_share),
            max_output_tokens=self.max_output_tokens,
        )

    def cost(self, usage: Usage) -> Decimal:
        """The exact cost of an answer in dollars."""
        return as_dollars(
            (usage.prompt_tokens - usage.cached_tokens) * _picodollars(self.input)
            + usage.cached_tokens * _picodollars(self.cached_input)
            + (usage.completion_tokens - usage.reasoning_tokens) * _picodollars(self.output)
            + usage.reasoning_tokens * _picodollars(self.reasoning)
        )

    def worst_case(self, body: JsonObject) -> Decimal:
        """The most that one chat completion can cost, in dollars, from the body of its request.

        The prompt has at most as many tokens as its JSON has UTF-8 bytes: a token of a byte-level tokenizer stands
        for one byte or more, and JSON only lengthens text. What a chat template adds is allowed for by constants, and
        tools count twice, because templates write them with spaces and indents. The answers have at most `n` times
        `max_completion_tokens` or `max_tokens`, else the `max_output_tokens` of the table.

        Not covered: tokenizers that rewrite text into a longer one (as NFKC does with ligatures), templates that add
        more than a few hundred tokens, servers that ignore `max_tokens` or do not count reasoning in it. A free model
        costs nothing, whatever the body.

        Raises:
            ConfigError: nothing bounds the cost: no maximum length, or a part that is not priced as text.
        """
        if self.is_free:
            return Decimal(0)
        reason = _why_text_does_not_bound(body)
        if reason:
            raise ConfigError(f"{_UNBOUNDED}: {reason}.", hint="Send text only, or set no budget.")
        num_completion_tokens = self.most_completion_tokens(body)
        if num_completion_tokens is None:
            raise ConfigError(f"{_UNBOUNDED}: it sets no maximum length.", hint="Set max_tokens.")
        dearest_input = max(_picodollars(self.input), _picodollars(self.cached_input))
        dearest_output = max(_picodollars(self.output), _picodollars(self.reasoning))
        return as_dollars(_most_prompt_tokens(body) * dearest_input + num_completion_tokens * dearest_output)

    def most_prompt_tokens(self, body: JsonObject) -> int | None:
        """The most tokens that a true count of a prompt can have; None if it is not of text alone."""
        if _why_text_does_not_bound(body):
            return None
        # A message has at least 16 bytes of JSON, and tools count twice: so twice the bytes bound `worst_case`'s.
        return 2 * _num_bytes(body) + _TOKENS_OF_A_CHAT + _TOKENS_AROUND_TOOLS

    def most_completion_tokens(self, body: JsonObject) -> int | None:
        """The most tokens that all choices of one response can have together; None if unlimited.

        Raises:
            ConfigError: `max_tokens` or `n` is not a whole number above 0.
        """
        # Servers differ in which of the two limits they read.
        lengths = [
            _whole_number(body, key) for key in ("max_completion_tokens", "max_tokens") if body.get(key) is not None
        ]
        longest = max(lengths) if lengths else self.max_output_tokens
        num_answers = 1 if body.get("n") is None else _whole_number(body, "n")
        return None if longest is None else longest * num_answers

    def _check(self, kind: str) -> None:
        dollars = getattr(self, kind)
        if not dollars.is_finite() or dollars < 0:
            raise ValueError(f"{kind} must be a number of dollars, 0 or more, got {dollars}")
        try:
            _picodollars(dollars)
            _picodollars(_EXACT.multiply(dollars, self.batch_share))
        except DecimalException as error:
            raise ValueError(f"{kind} must have at most six decimals, in a batch too, got {dollars}") from error


UNPRICED = Price(input=Decimal(0), cached_input=Decimal(0), output=Decimal(0), reasoning=Decimal(0))
"""For runs without a budget: every answer costs nothing."""


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None
    reasoning: Decimal | None = None
    batch_share: Decimal = Decimal(1)
    max_output_tokens: int | None = None

    def as_price(self) -> Price:
        return Price(
            input=self.input,
            cached_input=self.input if self.cached_input is None else self.cached_input,
            output=self.output,
            reasoning=self.output if self.reasoning is None else self.reasoning,
            batch_share=self.batch_share,
            max_output_tokens=self.max_output_tokens,
        )


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    as_of: date
    models: dict[str, object]
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTable:
    """Prices by model, and their date."""

    path: Path
    as_of: date
    """The day when the prices were taken from their source."""
    source: str
    prices: Mapping[str, Price]
    """By model name."""

    @classmethod
    def load(cls, path: Path | None = None) -> PriceTable:
        """Read a table; by default the one that comes with crashproof.

        Raises:
            ConfigError: it cannot be read, or an entry is invalid; names the file and the model.
        """
        path = path or _SHIPPED_TABLE
        table = _convert(_read(path), _Table, f"The price table {path}")
        prices = {model: _price(entry, model, path) for model, entry in table.models.items()}
        return cls(path=path, as_of=table.as_of, source=table.source, prices=prices)

    def of(self, model: str) -> Price:
        """The price of a model; a dated snapshot such as `gpt-4o-mini-2024-07-18` may be listed without its date.

        Raises:
            UnknownPrice: the table has neither.
        """
        snapshot = _SNAPSHOT.fullmatch(model)
        for name in [model, snapshot["model"]] if snapshot else [model]:
            if name in self.prices:
                return self.prices[name]
        raise UnknownPrice(model, table=self.path)


def price_of(model: str, table: PriceTable) -> Price:
    """A model's price; `UNPRICED` if the table has none, since only a budget needs one."""
    try:
        return table.of(model)
    except UnknownPrice:
        return UNPRICED


def _most_prompt_tokens(body: JsonObject) -> int:
    tools = {key: body[key] for key in ("functions", "response_format", "tools") if body.get(key)}
    around_tools = _num_bytes(tools) + _TOKENS_AROUND_TOOLS if tools else 0
    return _num_bytes(body) + _TOKENS_OF_A_MESSAGE * len(body["messages"]) + _TOKENS_OF_A_CHAT + around_tools


def _whole_number(body: JsonObject, key: str) -> int:
    count = body[key]
    # Not isinstance: True is an int too.
    if type(count) is not int or not 1 <= count <= MOST_TOKENS:
        raise ConfigError(f"{key} must be a whole number above 0, got {count!r}.", hint=f"Correct {key}.")
    return count


def _num_bytes(body: JsonObject) -> int:
    return len(msgspec.json.encode(body))


def _why_text_does_not_bound(body: JsonObject) -> str | None:
    """The first part of a request that is not priced by its bytes, described; None if there is none."""
    if not isinstance(body.get("messages"), list):
        return "it has no list of messages"
    if body.get("service_tier") not in _TIERS_WITHIN_LIST_PRICE:
        return f"the service tier {body['service_tier']!r} has another price"
    unpriced = next(_unpriced_parts(body), None)
    return None if unpriced is None else f"{unpriced!r} is not priced as text"


def _unpriced_parts(body: JsonObject) -> Iterator[str]:
    yield from (key for key in _PRICED_ELSEWHERE if body.get(key) is not None)
    for message in body["messages"]:
        yield from _unpriced_parts_of(message) if isinstance(message, Mapping) else [type(message).__name__]


def _unpriced_parts_of(message: Mapping[str, object]) -> Iterator[str]:
    if message.get("audio") is not None:
        yield "audio"
    content = message.get("content")
    for part in content if isinstance(content, list) else []:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind not in _TEXT_PARTS:
            yield str(kind)


def _read(path: Path) -> object:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=TextLoader)  # noqa: S506 - it creates text only
    except OSError as error:
        raise ConfigError(
            f"The price table {path} cannot be read ({error.strerror}).", hint="Check its path."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"The price table {path} is not valid YAML: {' '.join(str(error).split())}.") from error


def _price(entry: object, model: str, path: Path) -> Price:
    where = f"The price of {model} in {path}"
    try:
        return _convert(entry, _Entry, where).as_price()
    except ValueError as error:
        raise ConfigError(f"{where} cannot be used: {error}.", hint="Give dollars per million tokens.") from error


def _convert(content: object, kind: type[_Struct], where: str) -> _Struct:
    try:
        return msgspec.convert(content, kind, strict=False)
    except msgspec.ValidationError as error:
        keys = ", ".join(field.name for field in msgspec.structs.fields(kind))
        raise ConfigError(f"{where} cannot be used: {error}.", hint=f"Its keys are {keys}.") from error
