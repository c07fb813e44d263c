"""The protocol of alert channels."""

from __future__ import annotations

from typing import ClassVar, Protocol, Self

from crashproof.alerts.content import AlertContent

__all__ = ["AlertChannel", "ChannelUnavailable", "DeliveryError", "Setting"]

Setting = bool | str | tuple[str, ...]
"""What a channel is set to, as it travels to the process that sends."""


class AlertChannel(Protocol):
    """One way to send alerts; its `repr` never shows a secret."""

    name: ClassVar[str]
    """Its field in `AlertSettings`."""
    is_secret: ClassVar[bool] = False
    """Whether its setting must never be shown."""
    takes_variable: ClassVar[bool] = False
    """Whether a config may give its setting as `env:NAME`."""
    runs_in_training: ClassVar[bool] = False
    """Whether it needs the training's own process; all others run in the process that sends."""

    @classmethod
    def from_setting(cls, setting: object) -> Self | None:
        """The channel that a setting describes, or None where it is switched off.

        Raises:
            ConfigError: the setting is unusable; the error does not show it.
        """
        ...

    @property
    def setting(self) -> Setting:
        """The validated setting; `from_setting` accepts it again."""
        ...

    @property
    def limit_seconds(self) -> float:
        """How long one alert may take; whatever is unfinished then is abandoned."""
        ...

    def send(self, content: AlertContent) -> None:
        """Send one alert and wait until it is accepted; several threads may call this at once.

        Raises:
            DeliveryError: it was not accepted.
        """
        ...


class DeliveryError(Exception):
    """Why an alert was not accepted, in words that hold no secret."""


class ChannelUnavailable(DeliveryError):
    """The same for every alert, so one report is enough."""
