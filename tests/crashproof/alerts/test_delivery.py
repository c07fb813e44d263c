from __future__ import annotations

from pathlib import Path

import pytest
from alert_receiver import CONTENT

from crashproof.alerts.channels.desktop import Desktop
from crashproof.alerts.delivery import Deliveries


def test_a_channel_that_this_machine_lacks_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    reports: list[str] = []
    deliveries = Deliveries([Desktop()], report=reports.append)
    for _ in range(2):
        deliveries.start(CONTENT)
        deliveries.wait()

    assert ["no alerts are sent by desktop: neither notify-send nor osascript was found"] == reports
