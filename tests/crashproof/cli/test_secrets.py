"""A run with secrets in its config: nothing that is written or shown has one of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crashproof import RunReader
from crashproof.exporters.exporter import Point, Sent
from crashproof.exporters.names import TrackerNames
from crashproof.exporters.replay import replay
from crashproof.rules.naming.trackers import TENSORBOARD

SECRETS = {
    "openai_key": "swordfish-of-openai",
    "wandb_key": "0123456789abcdef0123456789abcdef01234567",
    "pw": "swordfish-of-a-database",
    "bearer": "swordfish-of-a-bearer",
    "note": "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "slack": "https://hooks.slack.com/services/T0/B0/swordfish",
}
CONFIG = {
    "train": {**SECRETS, "argv": ["--api-key", "swordfish-in-a-list", "--text", "x --token=swordfish-in-a-text"]},
    "model_args": "pretrained=gpt2,tokenizer=gpt2-xl",
}


def assert_clean(text: str) -> None:
    assert "swordfish" not in text
    assert not any(secret in text for secret in SECRETS.values())


class Received:
    """A tracker's parameters."""

    takes_late_points = True
    names = TrackerNames(TENSORBOARD)

    def open(self, facts):
        self.config = facts.config
        return Sent()

    def add(self, points: list[Point], mark: object) -> None:
        pass

    def forget(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def run(open_tracker, update, run_dir, caplog) -> Path:
    tracker = open_tracker(CONFIG)
    for step in range(1, 4):
        update(tracker, step)
    tracker.record_connection_failure(1, "401 for Authorization: Bearer swordfish-in-an-error")
    tracker.close(error=ValueError(f"no login with {SECRETS['slack']} and password=swordfish"))
    assert_clean(caplog.text)
    return run_dir


@pytest.fixture
def old_run(run, monkeypatch) -> Path:
    """The same as an earlier version wrote it, in clear."""
    from crashproof.records.lines.checksummed_line import add_checksum

    events = run / "progress" / "events.jsonl"
    lines = events.read_bytes().splitlines()
    first = json.loads(lines[0])
    first = {name: value for name, value in first.items() if name != list(first)[-1]} | {"config": CONFIG}
    events.write_bytes(b"\n".join([add_checksum(json.dumps(first).encode()).rstrip(b"\n"), *lines[1:]]) + b"\n")
    (run / "progress" / "session.json").unlink()
    return run


def test_no_file_of_the_run_has_one(run):
    for path in run.rglob("*"):
        if path.is_file():
            assert_clean(path.read_text(errors="replace"))


@pytest.mark.parametrize(
    "command",
    [
        ("status", "--json"),
        ("status",),
        ("history",),
        ("history", "--all"),
        ("runs",),
        ("checkpoints",),
        ("compare",),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("which", ["run", "old_run"])
def test_no_command_shows_one(crashproof, request, which, command):
    run = request.getfixturevalue(which)
    folders = [run, run] if command[0] == "compare" else [run.parent] if command[0] == "runs" else [run]

    said = crashproof(command[0], *folders, *command[1:])

    assert_clean(said.output + said.errors)


@pytest.mark.parametrize("which", ["run", "old_run"])
def test_the_report_of_the_doctor_has_none(crashproof, request, which, tmp_path):
    run = request.getfixturevalue(which)
    log = tmp_path / "train.log"
    log.write_text("login with --api-key swordfish\n" * 3)
    page = tmp_path / "report.html"

    said = crashproof("doctor", run, "--out", page, "--log", log)

    assert page.exists(), said.errors
    assert "gpt2-xl" in page.read_text()
    assert_clean(page.read_text() + said.output)


@pytest.mark.parametrize("which", ["run", "old_run"])
def test_no_tracker_receives_one(request, which):
    received = Received()

    replay(request.getfixturevalue(which), received)

    assert "gpt2-xl" in str(received.config)
    assert_clean(str(received.config))


@pytest.mark.parametrize("which", ["run", "old_run"])
def test_the_page_and_prometheus_show_none(request, which, tmp_path, clock):
    from served_runs import served

    from crashproof.dashboard.access import Access

    run = request.getfixturevalue(which)
    with served(tmp_path, Access(), clock.now) as server:
        name = run.name
        paths = ("", "metrics", "api/runs", f"api/run?name={name}", f"api/compare?name={name}&other={name}")
        pages = [server.get(f"/{path}") for path in paths]

    assert any("gpt2-xl" in page.body.decode() for page in pages), [page.status for page in pages]
    for page in pages:
        assert_clean(page.body.decode())


def test_the_next_start_writes_none_and_goes_on(old_run, open_tracker):
    session_id = RunReader.open(old_run).session().session_id

    tracker = open_tracker(CONFIG)

    assert session_id == tracker.session.session_id
    assert_clean((old_run / "progress" / "session.json").read_text())


@pytest.mark.parametrize("answer", ["archive", "continue", "error"])
def test_a_renewed_key_is_reported_and_the_run_goes_on(run, open_tracker, answer, caplog):
    session_id = RunReader.open(run).session().session_id

    renewed = {**CONFIG, "train": {**CONFIG["train"], "openai_key": "swordfish-that-is-new"}}
    tracker = open_tracker(renewed, on_config_change=answer)

    assert session_id == tracker.session.session_id
    assert "train.openai_key: changed (hidden)" in caplog.text
    assert_clean(caplog.text)
    caplog.clear()
    tracker.close()
    open_tracker(renewed, on_config_change=answer)
    assert "changed" not in caplog.text
