"""All channels, by the name of their setting."""

from __future__ import annotations

from collections.abc import Mapping

from crashproof.alerts.channels.base import AlertChannel
from crashproof.alerts.channels.bell import Bell
from crashproof.alerts.channels.command import Command
from crashproof.alerts.channels.desktop import Desktop
from crashproof.alerts.channels.slack import SlackWebhook
from crashproof.alerts.channels.webhook import Webhook

__all__ = ["CHANNELS"]

CHANNELS: Mapping[str, type[AlertChannel]] = {
    kind.name: kind for kind in (Webhook, SlackWebhook, Command, Desktop, Bell)
}
"""Each is a field of `AlertSettings`."""
