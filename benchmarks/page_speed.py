"""Time of the page's server."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.figures import Section, in_unit
from benchmarks.made_runs import new_tracker

__all__ = ["get_timed", "measure", "served"]

_PASTS = (10_000, 1_000_000)
_LONGEST_PAST = 10_000_000
_NUM_SERVERS = 3
_NUM_LOOKS = 30
_PAGE = ("", "page.css", "page.js", "charts.js", "words.js", "uplot.js", "uplot.css", "icon.svg")


def measure(work: Path, *, is_full: bool) -> Section:
    """Look at runs of growing pasts through a real server."""
    pasts = (*_PASTS, _LONGEST_PAST) if is_full else _PASTS
    rows = [_row(work / str(num_steps), num_steps) for num_steps in pasts]
    with served(work) as url:
        num_bytes = sum(len(gzip.compress(_get(url + name))) for name in _PAGE)
    return Section(
        title="The page",
        columns=["steps", "first picture", "second", "1 % of it, nearer", "refresh, live", "picture, bytes"],
        rows=rows,
        notes=[
            "One request to `crashproof serve` on loopback, from its sending to the last byte of its answer. First "
            f"picture: `/api/curve` of a server that has just started, the median of {_NUM_SERVERS}; a spike and a "
            "NaN are asked for in it. Refresh: `/api/tail` and `/api/run` together while the run gets a new update "
            f"before each, the longest of {_NUM_LOOKS}. The picture as gzip sends it.",
            f"Page, script and style together: {num_bytes / 1000:.1f} kB compressed.",
            "Goals: first picture of 10 million steps in under 200 ms, a refresh under 50 ms, the page under 100 kB.",
        ],
    )


def _row(folder: Path, num_steps: int) -> list[str]:
    spike, nan = num_steps // 3, num_steps // 2
    tracker = new_tracker(folder)
    for step in range(1, num_steps + 1):
        loss = 50.0 if step == spike else math.nan if step == nan else 1.0 + 3.0 * math.exp(-step / 200_000)
        tracker.update_metrics(step, loss, {"ce": loss * 0.4, "kd": loss * 0.6}, 3e-4, step * 32, step * 32_768)
    firsts, seconds, zooms, refreshes = [], [], [], []
    for _ in range(_NUM_SERVERS):
        with served(folder) as url:
            took, picture = get_timed(f"{url}api/curve?name=.&points=1000")
            _require_marks(picture)
            firsts.append(took)
            seconds.append(get_timed(f"{url}api/curve?name=.&points=1000")[0])
            part = f"from={num_steps // 2}&to={num_steps // 2 + num_steps // 100}"
            zooms.append(get_timed(f"{url}api/curve?name=.&points=1000&{part}")[0])
            after = json.loads(picture)["end"]
            for _ in range(_NUM_LOOKS // _NUM_SERVERS):
                num_steps += 1
                tracker.update_metrics(num_steps, 1.0, {"ce": 0.4, "kd": 0.6}, 3e-4, num_steps * 32, num_steps)
                tail_took, tail = get_timed(f"{url}api/tail?name=.&after={after}")
                after = json.loads(tail)["end"]
                refreshes.append(tail_took + get_timed(f"{url}api/run?name=.")[0])
    tracker.close()
    return [
        f"{num_steps - _NUM_LOOKS:,}",
        in_unit(median(firsts)),
        in_unit(median(seconds)),
        in_unit(median(zooms)),
        in_unit(max(refreshes)),
        f"{len(gzip.compress(picture)) / 1000:.0f} kB",
    ]


def _require_marks(picture: bytes) -> None:
    loss = json.loads(picture)["series"]["loss"]
    highest = max(value for value in loss.get("high", loss["last"]) if value is not None)
    if highest != 50.0 or [many for _, many in loss["non_finite"]] != [1]:
        raise AssertionError("The picture hides the spike or the NaN.")


@contextmanager
def served(root: Path) -> Iterator[str]:
    """A server of the runs under a folder; its address."""
    program = "from crashproof.cli import main; main()"
    command = [sys.executable, "-u", "-c", program, "serve", str(root), "--port", "0", "--no-token"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split(" at ")[1].split(" ")[0]
        # The server itself has started; nothing of the run is read yet.
        _get(url)
        yield url
    finally:
        server.terminate()
        server.wait()


def get_timed(url: str) -> tuple[float, bytes]:
    """How long a request takes, and its answer."""
    begun = perf_counter()
    content = _get(url)
    return perf_counter() - begun, content


def _get(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        content: bytes = answer.read()
        return gzip.decompress(content) if answer.headers.get("content-encoding") == "gzip" else content
