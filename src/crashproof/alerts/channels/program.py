"""Run a program for an alert."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

from crashproof.alerts.channels.base import DeliveryError

__all__ = ["as_argument", "run_program"]


def run_program(
    command: Sequence[str] | str,
    *,
    limit_seconds: float,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a program, or a line for the shell, to its end; discard its output.

    Raises:
        DeliveryError: it could not be started, failed, or was killed after its limit.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - the user's own command, or one found on their path
            command,
            shell=isinstance(command, str),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise DeliveryError(f"it could not be started ({error.strerror})") from error
    try:
        process.communicate(stdin, timeout=limit_seconds)
    except subprocess.TimeoutExpired as error:
        # Whatever it has started too.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise DeliveryError(f"it was killed after {limit_seconds:g} s") from error
    if process.returncode:
        raise DeliveryError(f"exit code {process.returncode}")


def as_argument(text: str) -> str:
    """Text as arguments and environment variables can hold it: without NUL and lone surrogates."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode()
