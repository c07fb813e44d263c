"""Send an alert to people and programs."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from crashproof.alerts.process_client import Channels

__all__ = ["Deliveries"]

_WEBHOOK_SECONDS = 10.0
_COMMAND_SECONDS = 60.0
_DESKTOP_SECONDS = 10.0
_PAUSES_SECONDS = (1.0, 4.0)
"""Between the tries of a webhook."""
_WEBHOOK_DEADLINE_SECONDS = 40.0
"""All tries together; a server may also send its answer one byte at a time."""
_MOST_UNDER_WAY = 64


class Deliveries:
    """Sends each alert to every channel, each in a thread of its own; a failure is told without any address."""

    def __init__(self, channels: Channels, *, tell: Callable[[str], None]) -> None:
        self._channels = channels
        self._tell = tell
        self._under_way: list[tuple[threading.Thread, float]] = []
        self._has_told_of_desktop = False

    def begin(self, content: dict[str, Any]) -> None:
        """Send an alert; returns at once."""
        for name, send, seconds in self._ways():
            self._under_way = [each for each in self._under_way if each[0].is_alive()]
            if len(self._under_way) >= _MOST_UNDER_WAY:
                self._tell(f"the alert {content['kind']} is not sent by {name}: too many are under way")
                continue
            thread = threading.Thread(target=self._attempted, args=(name, send, content), daemon=True)
            self._under_way.append((thread, time.monotonic() + seconds))
            thread.start()

    def wait(self) -> None:
        """Until all is sent or its time is up."""
        for thread, deadline in self._under_way:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _ways(self) -> list[tuple[str, Callable[[dict[str, Any]], None], float]]:
        channels = self._channels
        ways: list[tuple[str, Callable[[dict[str, Any]], None], float]] = []
        if channels.webhook is not None:
            ways.append(("webhook", self._post_json, _WEBHOOK_DEADLINE_SECONDS))
        if channels.slack_webhook is not None:
            ways.append(("slack_webhook", self._post_to_slack, _WEBHOOK_DEADLINE_SECONDS))
        if channels.command is not None:
            ways.append(("command", self._run_command, _COMMAND_SECONDS + 5.0))
        if channels.desktop:
            ways.append(("desktop", self._notify, _DESKTOP_SECONDS + 5.0))
        return ways

    def _attempted(self, name: str, send: Callable[[dict[str, Any]], None], content: dict[str, Any]) -> None:
        try:
            send(content)
        except _NotSent as error:
            self._tell(f"the alert {content['kind']} was not sent by {name}: {error}")
        except Exception as error:
            # Its text may hold the address.
            self._tell(f"the alert {content['kind']} was not sent by {name}: {type(error).__name__}")

    def _post_json(self, content: dict[str, Any]) -> None:
        assert self._channels.webhook is not None
        _post(self._channels.webhook, content)

    def _post_to_slack(self, content: dict[str, Any]) -> None:
        assert self._channels.slack_webhook is not None
        # A name between < and > would be a link, or call everybody.
        text = _in_a_line(content).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        _post(self._channels.slack_webhook, {"text": text})

    def _run_command(self, content: dict[str, Any]) -> None:
        command = self._channels.command
        assert command is not None
        environment = os.environ | {
            "CRASHPROOF_ALERT_KIND": _for_environment(content["kind"]),
            "CRASHPROOF_ALERT_MESSAGE": _for_environment(content["message"]),
            "CRASHPROOF_ALERT_RUN": _for_environment(content["run"]),
        }
        try:
            process = subprocess.Popen(  # noqa: S603 - the user's own command
                command,
                shell=isinstance(command, str),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise _NotSent(f"it cannot be started ({error.strerror})") from error
        try:
            process.communicate(json.dumps(content).encode(), timeout=_COMMAND_SECONDS)
        except subprocess.TimeoutExpired as error:
            # Whatever it has started too.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise _NotSent(f"it took longer than {_COMMAND_SECONDS:.0f} s") from error
        if process.returncode:
            raise _NotSent(f"exit code {process.returncode}")

    def _notify(self, content: dict[str, Any]) -> None:
        title, text = f"crashproof: {content['kind']}", _in_a_line(content)
        program = shutil.which("notify-send")
        command = [program, "--", title, text] if program else []
        if not command and sys.platform == "darwin" and (program := shutil.which("osascript")):
            script = (
                "on run words",
                "display notification (item 2 of words) with title (item 1 of words)",
                "end run",
            )
            # As words of their own, so that no message can be read as a script.
            command = [program, *(part for line in script for part in ("-e", line)), title, text]
        if not command:
            if not self._has_told_of_desktop:
                self._has_told_of_desktop = True
                self._tell("no alert is shown on a desktop: there is neither notify-send nor osascript")
            return
        try:
            done = subprocess.run(  # noqa: S603 - found on the user's path
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_DESKTOP_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _NotSent(f"it took longer than {_DESKTOP_SECONDS:.0f} s") from error
        if done.returncode:
            raise _NotSent(f"exit code {done.returncode}")


class _NotSent(Exception):
    """Why, in words that hold no address."""


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would turn the alert into a question, and may lead anywhere."""

    def redirect_request(self, *_: Any) -> None:
        """Nowhere."""


def _post(address: str, content: dict[str, Any]) -> None:
    """Send JSON; tried again where it surely was not taken."""
    request, opener = _request(address, content), _opener(address)
    for pause_seconds in (*_PAUSES_SECONDS, None):
        try:
            with opener.open(request, timeout=_WEBHOOK_SECONDS):
                return
        except HTTPError as error:
            error.close()
            reason, may_try_again = f"HTTP {error.code}", error.code == 429 or error.code >= 500
        except URLError as error:
            reason, may_try_again = _in_words(error.reason), True
        except TimeoutError:
            # It may have been taken; told twice is not told once.
            reason, may_try_again = f"no answer in {_WEBHOOK_SECONDS:.0f} s", False
        except (OSError, http.client.HTTPException) as error:
            reason, may_try_again = _in_words(error), isinstance(error, OSError)
        if not may_try_again or pause_seconds is None:
            raise _NotSent(reason)
        time.sleep(pause_seconds)


def _request(address: str, content: dict[str, Any]) -> Request:
    parts = urlsplit(address)
    headers = {"Content-Type": "application/json", "User-Agent": "crashproof"}
    if parts.username is not None:
        account = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(account).decode()}"
        address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return Request(address, data=json.dumps(content).encode(), headers=headers, method="POST")  # noqa: S310 - checked


def _opener(address: str) -> OpenerDirector:
    host = urlsplit(address).hostname or ""
    try:
        is_this_machine = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_this_machine = host == "localhost"
    # A proxy's own loopback is another machine.
    return build_opener(_NoRedirects, ProxyHandler({})) if is_this_machine else build_opener(_NoRedirects)


def _in_words(reason: object) -> str:
    """Of an error's text only what cannot hold the address."""
    if isinstance(reason, ConnectionError) and reason.errno:
        return os.strerror(reason.errno)
    return type(reason).__name__


def _in_a_line(content: dict[str, Any]) -> str:
    where = f"{content['run']} on {content['host']}" if content["host"] else content["run"]
    how_far = f"step {content['step']:,}, {content['progress_pct']:.1f} %"
    return f"{content['kind']}: {content['message']} ({where}, {how_far})"


def _for_environment(text: str) -> str:
    return text.replace("\0", " ").encode("utf-8", "replace").decode()
