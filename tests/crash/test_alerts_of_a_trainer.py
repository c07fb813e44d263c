"""A trainer sends the alerts of its config, and stores the webhook's address nowhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from alert_receiver import PATH, AlertReceiver, eventually

pytest.importorskip("torch")

CONFIG = """
model: {d_model: 32}
teacher: {steps: 2}
train: {batch_size: 2}
progress: {alerts: {webhook: "env:ALERT_HOOK", disk_low_bytes: 0}}
"""


def test_a_trainer_alerts_of_its_preemption_and_later_of_its_completion(tmp_path: Path) -> None:
    config, run, log = tmp_path / "config.yaml", tmp_path / "out", tmp_path / "log"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "training.distill_kd", "--config", str(config), "--output-dir", str(run)]
    metrics = run / "progress" / "metrics.jsonl"

    def is_training() -> bool:
        return metrics.exists() and metrics.stat().st_size > 0

    with AlertReceiver() as receiver, log.open("wb") as output:
        environment = os.environ | {"ALERT_HOOK": receiver.address}
        first = subprocess.Popen([*command, "--steps", "100000"], stderr=output, env=environment)
        eventually(lambda: is_training() or first.poll() is not None, seconds=200)
        first.send_signal(signal.SIGTERM)
        codes = [first.wait(60)]
        receiver.wait_for(1)
        step = receiver.received[0][1]["step"]
        codes.append(subprocess.run([*command, "--steps", f"{step + 2}"], stderr=output, env=environment).returncode)
        receiver.wait_for(2)

    assert [75, 0] == codes, log.read_text()
    assert [("preempted", step), ("complete", step + 2)] == [
        (content["kind"], content["step"]) for _, content in receiver.received
    ]
    secret = PATH.rpartition("/")[2].encode()
    assert [] == [path.name for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]
