"""Whom to alert, and of what."""

from __future__ import annotations

import difflib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from crashproof.errors import ConfigError
from crashproof.rules.alerts import ALERT_KINDS

__all__ = ["AlertSettings", "names_variable", "read_address"]

_FROM_ENVIRONMENT = "env:"

_OF_AN_ADDRESS = frozenset(string.ascii_letters + string.digits + string.punctuation)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSettings:
    """Whom to alert, and of what.

    Every alert is recorded and logged, whatever is set here; a process beside the training sends it.

    Raises:
        ConfigError: an address is none, a kind is unknown, or a number cannot be one.
    """

    webhook: str | None = field(default=None, repr=False)
    """An http(s) address that each alert is sent to as JSON. A secret: nothing shows it."""
    slack_webhook: str | None = field(default=None, repr=False)
    """The same in the form of Slack's incoming webhooks."""
    command: Sequence[str] | str | None = field(default=None, repr=False)
    """A program with its arguments, or a line for the shell; it gets the JSON on its standard input."""
    desktop: bool = False
    """Show a notification where `notify-send` or `osascript` is there."""
    bell: bool = False
    """Ring the terminal that the training writes its errors to."""
    kinds: frozenset[str] | None = None
    """What is sent; None sends every kind."""
    disk_low_bytes: int | None = None
    """Less free space than this is low; by default the larger of 1 GiB and twice the newest checkpoint."""
    budget_dollars: Decimal | None = None
    """What may be spent on teachers, for the alerts at 80 and 100 % of it."""

    def __post_init__(self) -> None:
        for name in ("webhook", "slack_webhook"):
            _require_address(name, getattr(self, name))
        # A list may be changed behind our back.
        object.__setattr__(self, "command", _checked_command(self.command))
        object.__setattr__(self, "kinds", _checked_kinds(self.kinds))
        if self.disk_low_bytes is not None and (type(self.disk_low_bytes) is not int or self.disk_low_bytes < 0):
            raise ConfigError(
                f"disk_low_bytes must be a whole number of at least 0, got {self.disk_low_bytes!r}.",
                hint="Write 5_000_000_000 for 5 GB.",
            )
        object.__setattr__(self, "budget_dollars", _checked_budget(self.budget_dollars))

    @property
    def has_channel(self) -> bool:
        """Whether anything is to be sent by a process of its own."""
        return self.desktop or any(each is not None for each in (self.webhook, self.slack_webhook, self.command))

    def sends(self, kind: str) -> bool:
        """Whether a kind is to be sent."""
        return self.kinds is None or kind in self.kinds


def names_variable(address: str | None) -> bool:
    """Whether it is `env:NAME`: the address itself stands in that variable of the environment."""
    return address is not None and address.startswith(_FROM_ENVIRONMENT)


def read_address(named: str, environment: Mapping[str, str], *, where: str) -> str:
    """The address that `env:NAME` stands for; `where` is where somebody has written that.

    Raises:
        ConfigError: the variable is not set.
    """
    variable = named.removeprefix(_FROM_ENVIRONMENT)
    if environment.get(variable):
        return environment[variable]
    raise ConfigError(
        f"{where} is {named}, and {variable or 'that variable'} is not set.",
        hint=f"Set it in the environment, or remove {where}.",
    )


def _require_address(name: str, address: Any) -> None:
    if address is None:
        return
    if isinstance(address, str) and set(address) <= _OF_AN_ADDRESS:
        try:
            parts = urlsplit(address)
            if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
                return
        except ValueError:
            pass
    # The address itself is a secret.
    raise ConfigError(f"{name} is no http(s) address.", hint="Write it like https://example.org/hook.")


def _checked_command(command: Any) -> tuple[str, ...] | str | None:
    if command is None or (isinstance(command, str) and command.strip()):
        return command
    if not isinstance(command, str) and isinstance(command, Sequence) and command:
        words = tuple(command)
        if all(isinstance(word, str) and "\0" not in word for word in words):
            return words
    raise ConfigError(
        "command is no program to start.", hint='Write a list such as ["notify", "--now"], or a line for the shell.'
    )


def _checked_kinds(kinds: Any) -> frozenset[str] | None:
    if kinds is None:
        return None
    if isinstance(kinds, str) or not isinstance(kinds, (Sequence, set, frozenset)):
        raise ConfigError("kinds must be a set of kinds of alerts.", hint='Write {"crashed", "complete"}.')
    for kind in kinds:
        if kind not in ALERT_KINDS:
            near = difflib.get_close_matches(str(kind), ALERT_KINDS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(ALERT_KINDS)}."
            raise ConfigError(f"{kind!r} is no kind of alert.", hint=hint)
    return frozenset(kinds)


def _checked_budget(budget: Any) -> Decimal | None:
    if budget is None:
        return None
    if isinstance(budget, (int, float, Decimal)) and not isinstance(budget, bool):
        dollars = Decimal(str(budget))
        if dollars.is_finite() and dollars > 0:
            return dollars
    raise ConfigError(f"budget_dollars must be more than 0, got {budget!r}.", hint="Write US dollars, such as 25.")
