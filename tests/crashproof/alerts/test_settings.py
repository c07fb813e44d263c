from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from crashproof import AlertSettings
from crashproof.errors import ConfigError
from crashproof.rules.alerts import ALERT_KINDS


@pytest.mark.parametrize(
    "given, sentence",
    [
        pytest.param(
            {"webhook": "ftp://example.org/very-secret-path"}, "webhook is not an http", id="another-scheme"
        ),
        pytest.param({"webhook": "very-secret-path"}, "webhook is not an http", id="no-scheme"),
        pytest.param({"webhook": "https:///very-secret-path"}, "webhook is not an http", id="no-host"),
        pytest.param({"webhook": "https://example.org:port/"}, "webhook is not an http", id="no-port"),
        pytest.param({"webhook": "https://example.org/very-secret path"}, "webhook is not an http", id="a-space"),
        pytest.param(
            {"webhook": "https://example.org/\r\nvery-secret-path"}, "webhook is not an http", id="a-new-line"
        ),
        pytest.param({"webhook": 7}, "webhook is not an http", id="a-number"),
        pytest.param({"webhook": False}, "webhook is not an http", id="switched-off-like-the-bell"),
        pytest.param({"slack_webhook": "slack"}, "slack_webhook is not an http", id="slack"),
        pytest.param({"command": ""}, "command is not a program", id="empty-command"),
        pytest.param({"command": []}, "command is not a program", id="no-words"),
        pytest.param({"command": ["echo", 7]}, "command is not a program", id="a-word-that-is-a-number"),
        pytest.param({"kinds": "crashed"}, "kinds must be a set", id="kinds-as-text"),
        pytest.param({"kinds": {"crash"}}, "'crash' is not a kind of alert. Did you mean crashed", id="nearest-kind"),
        pytest.param({"kinds": {"zzz"}}, "'zzz' is not a kind of alert. Known: stalled", id="no-near-kind"),
        pytest.param({"disk_low_bytes": -1}, "disk_low_bytes must be a whole number", id="negative-bytes"),
        pytest.param({"disk_low_bytes": True}, "disk_low_bytes must be a whole number", id="bytes-that-are-true"),
        pytest.param({"budget_dollars": 0}, "budget_dollars must be more than 0", id="no-budget"),
        pytest.param({"budget_dollars": Decimal("NaN")}, "budget_dollars must be more than 0", id="nan"),
        pytest.param({"budget_dollars": "25"}, "budget_dollars must be more than 0", id="budget-as-text"),
    ],
)
def test_unusable_settings_are_refused_without_showing_an_address(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        AlertSettings(**given)

    assert str(refusal.value).startswith(sentence)
    assert refusal.value.hint or "Known" in str(refusal.value)
    assert "very-secret" not in str(refusal.value)


def test_every_kind_is_sent_unless_some_are_named() -> None:
    some = AlertSettings(kinds=frozenset({"crashed", "complete"}))

    assert list(ALERT_KINDS) == [kind for kind in ALERT_KINDS if AlertSettings().sends(kind)]
    assert ["crashed", "complete"] == [kind for kind in ALERT_KINDS if some.sends(kind)]


def test_a_later_change_of_the_list_does_not_change_the_command() -> None:
    words = ["notify", "--now"]
    settings = AlertSettings(command=words)
    words.append("--later")

    assert ("notify", "--now") == settings.command


def test_a_budget_is_exact() -> None:
    assert Decimal("0.1") == AlertSettings(budget_dollars=0.1).budget_dollars  # type: ignore[arg-type]
