"""Post alerts to Slack."""

from __future__ import annotations

import json
from typing import ClassVar

from crashproof.alerts.channels.webhook import Webhook
from crashproof.alerts.content import AlertContent

__all__ = ["SlackWebhook"]


class SlackWebhook(Webhook):
    """Posts each alert as one line to an incoming webhook of Slack."""

    name: ClassVar[str] = "slack_webhook"

    def _payload(self, content: AlertContent) -> bytes:
        # A name between < and > would be a link, or notify everybody.
        text = content.as_line().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return json.dumps({"text": text}).encode()
