from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from crashproof import AlertSettings
from crashproof.errors import ConfigError
from crashproof.rules.alerts import ALERT_KINDS

SECRET = "https://hooks.example.org/services/T0/B0/very-secret-path"


@pytest.mark.parametrize(
    "given, sentence",
    [
        pytest.param({"webhook": "ftp://example.org/very-secret-path"}, "webhook is no http", id="another-scheme"),
        pytest.param({"webhook": "very-secret-path"}, "webhook is no http", id="no-scheme"),
        pytest.param({"webhook": "https:///very-secret-path"}, "webhook is no http", id="no-host"),
        pytest.param({"webhook": "https://example.org:port/"}, "webhook is no http", id="no-port"),
        pytest.param({"webhook": "https://example.org/very-secret path"}, "webhook is no http", id="a-space"),
        pytest.param({"webhook": "https://example.org/\r\nvery-secret-path"}, "webhook is no http", id="a-new-line"),
        pytest.param({"webhook": 7}, "webhook is no http", id="a-number"),
        pytest.param({"slack_webhook": "slack"}, "slack_webhook is no http", id="slack"),
        pytest.param({"command": ""}, "command is no program", id="empty-command"),
        pytest.param({"command": []}, "command is no program", id="no-words"),
        pytest.param({"command": ["echo", 7]}, "command is no program", id="a-word-that-is-none"),
        pytest.param({"kinds": "crashed"}, "kinds must be a set", id="kinds-as-text"),
        pytest.param({"kinds": {"crash"}}, "'crash' is no kind of alert. Did you mean crashed", id="nearest-kind"),
        pytest.param({"kinds": {"zzz"}}, "'zzz' is no kind of alert. Known: stalled", id="no-near-kind"),
        pytest.param({"disk_low_bytes": -1}, "disk_low_bytes must be a whole number", id="negative-bytes"),
        pytest.param({"disk_low_bytes": True}, "disk_low_bytes must be a whole number", id="bytes-that-are-true"),
        pytest.param({"budget_dollars": 0}, "budget_dollars must be more than 0", id="no-budget"),
        pytest.param({"budget_dollars": Decimal("NaN")}, "budget_dollars must be more than 0", id="nan"),
        pytest.param({"budget_dollars": "25"}, "budget_dollars must be more than 0", id="budget-as-text"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_without_showing_an_address(
    given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        AlertSettings(**given)

    assert str(refusal.value).startswith(sentence)
    assert refusal.value.hint or "Known" in str(refusal.value)
    assert "very-secret" not in str(refusal.value)


def test_nothing_shows_an_address() -> None:
    settings = AlertSettings(webhook=SECRET, slack_webhook=SECRET, command=["curl", SECRET])

    assert "secret" not in repr(settings)
    assert "secret" not in f"{settings}"


@pytest.mark.parametrize(
    "given, expected",
    [
        pytest.param({}, False, id="nothing"),
        pytest.param({"bell": True}, False, id="the-bell-rings-by-itself"),
        pytest.param({"webhook": SECRET}, True, id="webhook"),
        pytest.param({"slack_webhook": SECRET}, True, id="slack"),
        pytest.param({"command": "mail me"}, True, id="command"),
        pytest.param({"desktop": True}, True, id="desktop"),
    ],
)
def test_a_process_is_needed_only_where_something_is_sent(given: dict[str, Any], expected: bool) -> None:
    assert expected is AlertSettings(**given).has_channel


def test_every_kind_is_sent_unless_some_are_named() -> None:
    some = AlertSettings(kinds=frozenset({"crashed", "complete"}))

    assert list(ALERT_KINDS) == [kind for kind in ALERT_KINDS if AlertSettings().sends(kind)]
    assert ["crashed", "complete"] == [kind for kind in ALERT_KINDS if some.sends(kind)]


def test_a_command_that_is_changed_afterwards_stays_what_it_was() -> None:
    words = ["notify", "--now"]
    settings = AlertSettings(command=words)
    words.append("--later")

    assert ("notify", "--now") == settings.command


def test_a_budget_is_exact() -> None:
    assert Decimal("0.1") == AlertSettings(budget_dollars=0.1).budget_dollars  # type: ignore[arg-type]
