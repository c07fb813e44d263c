"""Send alerts in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from crashproof.alerts.channels.base import AlertChannel, ChannelUnavailable, DeliveryError
from crashproof.alerts.content import AlertContent
from crashproof.threads import try_to_start

__all__ = ["Deliveries"]

_GRACE_SECONDS = 5.0
"""Beyond a channel's limit, for one that keeps it to report so."""


class Deliveries:
    """Sends each alert by every channel, each in a thread of its own; reports failures without any secret."""

    def __init__(
        self, channels: Sequence[AlertChannel], *, report: Callable[[str], None], most_unfinished: int = 64
    ) -> None:
        self._channels = channels
        self._report = report
        self._most_unfinished = most_unfinished
        self._unfinished: list[tuple[threading.Thread, float]] = []
        self._unavailable: set[str] = set()

    def start(self, content: AlertContent) -> None:
        """Send an alert; return at once, except where no thread can be started."""
        for channel in self._channels:
            self._unfinished = [each for each in self._unfinished if each[0].is_alive()]
            if len(self._unfinished) >= self._most_unfinished:
                count = len(self._unfinished)
                self._report(f"the alert {content.kind} is not sent by {channel.name}: {count} others are unfinished")
                continue
            thread = threading.Thread(target=self._send, args=(channel, content), daemon=True)
            if try_to_start(thread):
                self._unfinished.append((thread, time.monotonic() + channel.limit_seconds + _GRACE_SECONDS))
            else:
                self._send(channel, content)

    def wait(self) -> None:
        """Wait until every alert is sent or past its limit."""
        for thread, deadline in self._unfinished:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _send(self, channel: AlertChannel, content: AlertContent) -> None:
        try:
            channel.send(content)
        except ChannelUnavailable as error:
            if channel.name not in self._unavailable:
                self._unavailable.add(channel.name)
                self._report(f"no alerts are sent by {channel.name}: {error}")
        except DeliveryError as error:
            self._report(f"the alert {content.kind} was not sent by {channel.name}: {error}")
        except Exception as error:
            # Its text may hold a secret.
            self._report(f"the alert {content.kind} was not sent by {channel.name}: {type(error).__name__}")
