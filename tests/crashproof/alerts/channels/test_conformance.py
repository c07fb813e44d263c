"""What every channel of alerts promises."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from alert_receiver import CONTENT, AlertReceiver, eventually

from crashproof.alerts.channels.base import AlertChannel
from crashproof.alerts.channels.registry import CHANNELS
from crashproof.alerts.delivery import Deliveries
from crashproof.alerts.settings import AlertSettings

SECRET = "very-secret-path"
WORKS, FAILS, HANGS = "works", "fails", "hangs"


@dataclass
class Receiver:
    """Whatever is at the other end of a channel."""

    channel: AlertChannel
    received: Callable[[], list[str]]
    """The text of each alert."""


@contextmanager
def webhook(behavior: str, folder: Path, name: str = "webhook") -> Iterator[Receiver]:
    statuses = (404,) * 10 if behavior == FAILS else ()
    with AlertReceiver(statuses=statuses, hangs=behavior == HANGS) as receiver:
        channel: Any = CHANNELS[name].from_setting(receiver.address)
        yield Receiver(
            replace(channel, response_seconds=0.5 if behavior == HANGS else 10.0),
            lambda: [str(content.get("text") or content["message"]) for _, content in receiver.received],
        )


@contextmanager
def slack_webhook(behavior: str, folder: Path) -> Iterator[Receiver]:
    with webhook(behavior, folder, "slack_webhook") as receiver:
        yield receiver


def program(behavior: str, folder: Path, says: str) -> str:
    """A line for the shell; each run appends to a file of its own."""
    write = f'printf "%s" "{says}" > "$(mktemp {folder}/received.XXXXXX)"'
    return {WORKS: write, FAILS: f"{write}; exit 3", HANGS: f"{write}; sleep 300"}[behavior]


def written(folder: Path) -> list[str]:
    return [path.read_text(errors="replace") for path in folder.glob("received.*")]


@contextmanager
def command(behavior: str, folder: Path) -> Iterator[Receiver]:
    line = f"{program(behavior, folder, '$CRASHPROOF_ALERT_MESSAGE')} # {SECRET}"
    channel: Any = CHANNELS["command"].from_setting(line)
    yield Receiver(replace(channel, limit_seconds=0.5 if behavior == HANGS else 60.0), lambda: written(folder))


@contextmanager
def desktop(behavior: str, folder: Path) -> Iterator[Receiver]:
    notifier = folder / "notify-send"
    notifier.write_text(f"#!/bin/sh\n{program(behavior, folder, '$3')}\n")
    notifier.chmod(0o755)
    channel: Any = CHANNELS["desktop"].from_setting(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:/bin:/usr/bin")
        yield Receiver(replace(channel, limit_seconds=0.5 if behavior == HANGS else 10.0), lambda: written(folder))


class Terminal(io.StringIO):
    is_gone = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.is_gone:
            raise OSError(5, f"Input/output error: {SECRET}")
        return super().write(text)


@contextmanager
def bell(behavior: str, folder: Path) -> Iterator[Receiver]:
    terminal = Terminal()
    terminal.is_gone = behavior == FAILS
    channel: Any = CHANNELS["bell"].from_setting(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        yield Receiver(channel, lambda: list(terminal.getvalue()))


RECEIVERS: dict[str, Callable[[str, Path], Any]] = {
    "webhook": webhook,
    "slack_webhook": slack_webhook,
    "command": command,
    "desktop": desktop,
    "bell": bell,
}
every_channel = pytest.mark.parametrize("name", CHANNELS)
every_channel_with_a_receiver = pytest.mark.parametrize(
    # Nothing receives the bell, so nothing can hang.
    "name",
    [name for name, channel in CHANNELS.items() if not channel.runs_in_training],
)


@pytest.fixture
def receiver_of(tmp_path: Path) -> Iterator[Callable[[str, str], Receiver]]:
    with ExitStack() as stack:
        yield lambda name, behavior: stack.enter_context(RECEIVERS[name](behavior, tmp_path))


Receivers = Callable[[str, str], Receiver]


def delivered(channel: AlertChannel, content: Any = CONTENT) -> list[str]:
    """Send one alert and wait; return what was reported."""
    reports: list[str] = []
    deliveries = Deliveries([channel], report=reports.append)
    deliveries.start(content)
    deliveries.wait()
    return reports


@every_channel
def test_a_channel_is_found_by_the_name_of_its_setting(name: str, receiver_of: Receivers) -> None:
    channel = receiver_of(name, WORKS).channel

    assert name == channel.name == CHANNELS[name].name
    assert [channel.setting] == [each.setting for each in AlertSettings(**{name: channel.setting}).channels()]
    assert None is CHANNELS[name].from_setting(getattr(AlertSettings(), name))


@every_channel
def test_an_alert_is_delivered_once(name: str, receiver_of: Receivers) -> None:
    receiver = receiver_of(name, WORKS)

    assert [] == delivered(receiver.channel)
    assert 1 == len(receiver.received())


@every_channel
def test_a_failure_is_reported_once_without_a_secret(name: str, receiver_of: Receivers) -> None:
    (report,) = delivered(receiver_of(name, FAILS).channel)

    assert report.startswith(f"the alert raised was not sent by {name}: ")
    assert SECRET not in report


@every_channel
def test_no_secret_is_shown(name: str, receiver_of: Receivers) -> None:
    channel = receiver_of(name, WORKS).channel

    assert SECRET not in repr(channel) + repr(AlertSettings(**{name: channel.setting}))
    assert (SECRET in str(channel.setting)) is channel.is_secret


@every_channel_with_a_receiver
def test_a_receiver_that_hangs_is_abandoned_after_its_limit(name: str, receiver_of: Receivers) -> None:
    (report,) = delivered(receiver_of(name, HANGS).channel)

    assert report.endswith("0.5 s")


@every_channel_with_a_receiver
def test_only_so_many_deliveries_are_unfinished(name: str, receiver_of: Receivers) -> None:
    receiver = receiver_of(name, HANGS)
    reports: list[str] = []
    deliveries = Deliveries([receiver.channel], report=reports.append, most_unfinished=2)
    for _ in range(3):
        deliveries.start(CONTENT)

    assert [f"the alert raised is not sent by {name}: 2 others are unfinished"] == reports[:1]
    deliveries.wait()
    eventually(lambda: len(receiver.received()) == 2)


@every_channel
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("nul \0 behind", id="nul"),
        pytest.param("one line\r\nand another", id="newlines"),
        pytest.param("<!channel> & <https://example.org|link>", id="slack-markup"),
        pytest.param("lone \ud800 and \udcff", id="lone-surrogates"),
        pytest.param("$(reboot) `reboot` ; reboot '\"", id="shell"),
        pytest.param("--help", id="option"),
    ],
)
def test_unusual_text_harms_nothing(name: str, text: str, receiver_of: Receivers) -> None:
    receiver = receiver_of(name, WORKS)
    content = msgspec.structs.replace(CONTENT, kind=text, message=text, run=text, host=text)

    assert [] == delivered(receiver.channel, content)
    (received,) = receiver.received()
    assert name != "slack_webhook" or "<" not in received
