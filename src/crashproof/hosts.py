"""The name of this machine."""

from __future__ import annotations

import os

__all__ = ["host_name"]


def host_name() -> str:
    """What `socket.gethostname` returns, without the millisecond that importing `socket` adds to every start."""
    return os.uname().nodename
