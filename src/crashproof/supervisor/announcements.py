"""What clouds announce on their metadata addresses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

__all__ = ["Announcement", "read_aws", "read_gcp"]

_GCP_SECONDS = 30.0
"""Between the notice and the end of the machine."""
_AWS_SECONDS = 120.0
"""If the notice names no moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A machine is about to be taken away."""

    what: str
    seconds_left: float


def read_aws(body: str, *, now: float) -> Announcement:
    """The answer at `spot/instance-action`, such as `{"action": "terminate", "time": "2026-12-01T08:22:00Z"}`."""
    try:
        fields = json.loads(body)
        action, moment = str(fields["action"]), datetime.fromisoformat(fields["time"]).timestamp()
    except (ValueError, KeyError, TypeError):
        return Announcement(what="AWS takes the machine away", seconds_left=_AWS_SECONDS)
    return Announcement(what=f"AWS announces: {action}", seconds_left=max(0.0, moment - now))


def read_gcp(body: str) -> Announcement | None:
    """The answer at `instance/preempted`: `TRUE` or `FALSE`."""
    if body.strip().upper() != "TRUE":
        return None
    return Announcement(what="Google Cloud preempts the machine", seconds_left=_GCP_SECONDS)
