from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import replace

import pytest
from served_runs import served

pytest.importorskip("starlette")

from crashproof.dashboard.limits import Limits


class Listener:
    """Hears server-sent events as a browser does."""

    def __init__(self, url: str, **headers: str) -> None:
        self._answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20)
        self.kind = self._answer.headers["content-type"]

    def next(self, name: str) -> tuple[str | None, dict]:
        """The next event of a name: its id and what it says."""
        fields: dict[str, str] = {}
        while True:
            line = self._answer.readline().decode().rstrip("\n")
            if line:
                key, _, value = line.partition(": ")
                fields[key] = value
            elif fields.get("event") == name:
                return fields.get("id"), json.loads(fields["data"])
            else:
                fields = {}

    def close(self) -> None:
        self._answer.close()


@pytest.fixture
def listen():
    opened = []

    def to(url: str, **headers: str) -> Listener:
        opened.append(Listener(url, **headers))
        return opened[-1]

    yield to
    for each in opened:
        each.close()


def test_new_updates_are_streamed_with_the_offset_to_continue_from(serve, listen, open_tracker, update, tmp_path):
    tracker = open_tracker(output_dir=tmp_path / "run", total_steps=100)
    update(tracker, 1)
    served = serve()
    listener = listen(f"{served.url}api/live?name=run&after=0")

    first_id, first = listener.next("tail")
    update(tracker, 2)
    update(tracker, 3)
    second_id, second = listener.next("tail")

    assert listener.kind.startswith("text/event-stream")
    assert ([1], [2, 3]) == (first["step"], second["step"])
    assert (str(first["end"]), str(second["end"])) == (first_id, second_id)
    assert tracker.metrics_file.stat().st_size == second["end"]


def test_a_browser_that_connects_again_misses_nothing_and_hears_nothing_twice(
    serve, listen, open_tracker, update, tmp_path
):
    tracker = open_tracker(output_dir=tmp_path / "run", total_steps=100)
    update(tracker, 1)
    served = serve()
    url = f"{served.url}api/live?name=run&after=0"
    listener = listen(url)
    heard, _ = listener.next("tail")
    listener.close()
    update(tracker, 2)

    _, told = listen(url, **{"Last-Event-ID": heard}).next("tail")

    assert [2] == told["step"]


def test_the_state_is_sent_repeatedly(serve, listen, open_tracker, update, tmp_path):
    tracker = open_tracker(output_dir=tmp_path / "run", total_steps=100)
    update(tracker, 1)
    listener = listen(f"{serve().url}api/live?name=run&after=0")

    _, before = listener.next("detail")
    tracker.close()
    _, after = listener.next("detail")

    assert ("running", "ended_early") == (before["summary"]["status"], after["summary"]["status"])


def test_what_has_not_changed_is_not_sent_again(serve, listen, open_tracker, update, save_checkpoint, tmp_path):
    tracker = open_tracker(output_dir=tmp_path / "run", total_steps=100)
    update(tracker, 1)
    listener = listen(f"{serve().url}api/live?name=run&after=0")

    _, first = listener.next("detail")
    _, second = listener.next("summary")
    save_checkpoint(tracker, 1, path=tmp_path / "run" / "checkpoint_1.pt")
    _, third = listener.next("detail")

    assert {"now", "summary"} == second.keys()
    assert ([], ["checkpoint_1.pt"]) == tuple(
        [each["path"] for each in told["checkpoints"]] for told in (first, third)
    )


def test_a_run_that_cannot_be_read_any_more_is_trouble_and_not_the_end(serve, listen, open_tracker, tmp_path):
    tracker = open_tracker(output_dir=tmp_path / "run", total_steps=100)
    listener = listen(f"{serve().url}api/live?name=run&after=0")
    listener.next("detail")
    tracker.close()
    away = tmp_path / "run" / "progress"
    away.rename(tmp_path / "away")

    _, told = listener.next("trouble")
    (tmp_path / "away").rename(away)

    assert "holds no run" in told["error"]
    listener.next("detail")


def test_a_page_beyond_the_most_streams_is_sent_to_polling(serve, listen, open_tracker, tmp_path):
    open_tracker(output_dir=tmp_path / "run", total_steps=100)
    served = serve(limits=replace(Limits.for_descriptors(1024), most_streams=2))
    url = f"{served.url}api/live?name=run&after=0"
    listeners = [listen(url) for _ in range(2)]
    for listener in listeners:
        listener.next("detail")

    refused = served.get("/api/live?name=run&after=0")
    listeners[0].close()

    assert (503, "30") == (refused.status, refused.headers["retry-after"])
    assert "polls instead" in refused.json["error"]
    assert 200 == served.get("/api/run?name=run").status
    for _ in range(200):
        with suppress(urllib.error.HTTPError):
            listen(url).next("detail")
            break
        time.sleep(0.05)
    else:
        pytest.fail("a stream that has ended still counts")


def test_the_server_ends_while_pages_listen(tmp_path, listen, open_tracker, clock, caplog):
    from crashproof.dashboard.access import Access

    open_tracker(output_dir=tmp_path / "run", total_steps=100)
    with served(tmp_path, Access(), clock.now) as server:
        threads = [
            threading.Thread(target=listen, args=(f"{server.url}api/live?name=run&after=0",)) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        began_at = time.monotonic()

    assert time.monotonic() - began_at < 60
    assert [] == caplog.messages
