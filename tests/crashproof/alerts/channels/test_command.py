from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from alert_receiver import CONTENT, eventually

from crashproof.alerts.channels.base import DeliveryError
from crashproof.alerts.channels.command import Command


@pytest.mark.parametrize("is_a_line", [True, False], ids=["a-line-for-the-shell", "a-program"])
def test_a_command_receives_the_json_and_its_environment(tmp_path: Path, is_a_line: bool) -> None:
    script = (
        'cat > "$0/json"; echo "$CRASHPROOF_ALERT_KIND|$CRASHPROOF_ALERT_MESSAGE|$CRASHPROOF_ALERT_RUN" > "$0/env"'
    )
    line = script.replace("$0", str(tmp_path))
    Command(command=line if is_a_line else ("sh", "-c", script, str(tmp_path))).send(CONTENT)

    assert msgspec.structs.asdict(CONTENT) == json.loads((tmp_path / "json").read_text())
    assert "raised|ValueError: <b> & so on|/runs/one\n" == (tmp_path / "env").read_text()


@pytest.mark.parametrize(
    "command, expected",
    [
        pytest.param(("false",), "exit code 1", id="it-fails"),
        pytest.param(("/no/such/program",), r"it could not be started \(No such file or directory\)", id="missing"),
    ],
)
def test_a_command_that_fails_says_why(command: tuple[str, ...], expected: str) -> None:
    with pytest.raises(DeliveryError, match=f"^{expected}$"):
        Command(command=command).send(CONTENT)


def test_a_command_that_hangs_is_killed_with_everything_it_started(tmp_path: Path) -> None:
    command = Command(command=f"sleep 300 & echo $! > {tmp_path}/pid; sleep 300", limit_seconds=1.0)
    with pytest.raises(DeliveryError, match=r"^it was killed after 1 s$"):
        command.send(CONTENT)

    child = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    eventually(lambda: not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z")
