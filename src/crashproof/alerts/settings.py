"""Whom to alert, and of what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TypeGuard

from crashproof.alerts.channels.base import AlertChannel
from crashproof.errors import ConfigError
from crashproof.rules.alerts import ALERT_KINDS

__all__ = ["AlertSettings", "names_variable", "read_address"]

_FROM_ENVIRONMENT = "env:"
_OFF = {"webhook": None, "slack_webhook": None, "command": None, "desktop": False, "bell": False}
"""What switches a channel off, by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSettings:
    """Whom to alert, and of what.

    Every alert is recorded and logged, whatever is set here; a process beside the training sends it.

    Raises:
        ConfigError: an address, a command, a kind or a number is unusable.
    """

    webhook: str | None = field(default=None, repr=False)
    """An http(s) address that each alert is posted to as JSON. A secret: nothing shows it."""
    slack_webhook: str | None = field(default=None, repr=False)
    """The same in the form of Slack's incoming webhooks."""
    command: Sequence[str] | str | None = field(default=None, repr=False)
    """A program with its arguments, or a line for the shell; it receives the JSON on its standard input."""
    desktop: bool = False
    """Show a notification where `notify-send` or `osascript` is available."""
    bell: bool = False
    """Ring the terminal that the training writes its errors to."""
    kinds: frozenset[str] | None = None
    """The kinds to send; None sends all."""
    disk_low_bytes: int | None = None
    """Less free space than this is low; by default the larger of 1 GiB and twice the newest checkpoint."""
    budget_dollars: Decimal | None = None
    """The budget for teachers, for the alerts at 80 and 100 % of it."""

    def __post_init__(self) -> None:
        for channel in self.channels():
            # A list may be changed behind our back; what was validated is kept.
            object.__setattr__(self, channel.name, channel.setting)
        object.__setattr__(self, "kinds", _checked_kinds(self.kinds))
        if self.disk_low_bytes is not None and (type(self.disk_low_bytes) is not int or self.disk_low_bytes < 0):
            raise ConfigError(
                f"disk_low_bytes must be a whole number of at least 0, got {self.disk_low_bytes!r}.",
                hint="Write 5_000_000_000 for 5 GB.",
            )
        object.__setattr__(self, "budget_dollars", _checked_budget(self.budget_dollars))

    def channels(self) -> list[AlertChannel]:
        """The channels that are switched on."""
        given = {name: setting for name, off in _OFF.items() if (setting := getattr(self, name)) is not off}
        if not given:
            return []
        # They bring along what starts programs and speaks HTTP: a run without alerts does not wait for it.
        from crashproof.alerts.channels.registry import CHANNELS

        found = [CHANNELS[name].from_setting(setting) for name, setting in given.items()]
        return [channel for channel in found if channel is not None]

    def secrets(self) -> list[str]:
        """The addresses that alerts are sent to, for whoever must keep them out of a text."""
        settings = [channel.setting for channel in self.channels() if channel.is_secret]
        return [setting for setting in settings if isinstance(setting, str)]

    def sends(self, kind: str) -> bool:
        """Whether a kind is to be sent."""
        return self.kinds is None or kind in self.kinds


def names_variable(address: object) -> TypeGuard[str]:
    """Whether an address is `env:NAME`, that is, stored in that environment variable."""
    return isinstance(address, str) and address.startswith(_FROM_ENVIRONMENT)


def read_address(named: str, environment: Mapping[str, str], *, where: str) -> str:
    """The address that `env:NAME` stands for; `where` names the option or config key that holds it.

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


def _checked_kinds(kinds: object) -> frozenset[str] | None:
    if kinds is None:
        return None
    if isinstance(kinds, str) or not isinstance(kinds, (Sequence, set, frozenset)):
        raise ConfigError("kinds must be a set of kinds of alerts.", hint='Write {"crashed", "complete"}.')
    for kind in kinds:
        if kind not in ALERT_KINDS:
            # Only an error needs it.
            from difflib import get_close_matches

            near = get_close_matches(str(kind), ALERT_KINDS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(ALERT_KINDS)}."
            raise ConfigError(f"{kind!r} is not a kind of alert.", hint=hint)
    return frozenset(kinds)


def _checked_budget(budget: object) -> Decimal | None:
    if budget is None:
        return None
    if isinstance(budget, (int, float, Decimal)) and not isinstance(budget, bool):
        dollars = Decimal(str(budget))
        if dollars.is_finite() and dollars > 0:
            return dollars
    raise ConfigError(f"budget_dollars must be more than 0, got {budget!r}.", hint="Write US dollars, such as 25.")
