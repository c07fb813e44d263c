"""The server's routes."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path

from anyio import to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from crashproof.dashboard.access import Access, AccessGuard
from crashproof.dashboard.live import live_events
from crashproof.dashboard.prometheus import metrics_page
from crashproof.dashboard.responses import json_bytes
from crashproof.dashboard.watched_run import WatchedRun
from crashproof.dashboard.watched_runs import WatchedRuns
from crashproof.errors import CrashproofError
from crashproof.records.progress import ProgressSummary
from crashproof.rules.comparing import config_differences

__all__ = ["Page", "app_for"]

_MOST_POINTS = 4000
_USUAL_POINTS = 1000
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/words.js": ("words.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/uplot.js": ("uplot/uPlot.iife.min.js", "text/javascript; charset=utf-8"),
    "/uplot.css": ("uplot/uPlot.min.css", "text/css; charset=utf-8"),
}


def app_for(root: Path, access: Access, *, now: Callable[[], float] = time.time) -> Starlette:
    """Return the application that serves all runs under `root` to requests that `access` allows."""
    page = Page(WatchedRuns(root.absolute()), now=now)
    static = [Route(address, _file(name, kind), methods=["GET"]) for address, (name, kind) in _FILES.items()]
    return Starlette(
        routes=[
            *static,
            Route("/api/runs", page.runs, methods=["GET"]),
            Route("/api/run", page.run, methods=["GET"]),
            Route("/api/curve", page.curve, methods=["GET"]),
            Route("/api/tail", page.tail, methods=["GET"]),
            Route("/api/live", page.live, methods=["GET"]),
            Route("/api/compare", page.compare, methods=["GET"]),
            Route("/metrics", page.metrics, methods=["GET"]),
        ],
        middleware=[Middleware(AccessGuard, access=access), Middleware(GZipMiddleware, minimum_size=1024)],
        exception_handlers={
            CrashproofError: _refused,
            OSError: _refused,
        },
    )


class Page:
    """The handlers of the page's requests."""

    def __init__(self, runs: WatchedRuns, *, now: Callable[[], float]) -> None:
        self._runs = runs
        self._now = now
        self.is_closing = False

    async def runs(self, request: Request) -> Response:
        """List all runs."""
        now = self._now()
        rows = await to_thread.run_sync(lambda: [run.row(now=now) for run in self._runs.all()])
        return _json({"root": str(self._runs.root), "now": now, "runs": rows})

    async def run(self, request: Request) -> Response:
        """Return everything about one run except its curves."""
        run = await self._requested_run(request)
        return _json(await to_thread.run_sync(lambda: run.detail(now=self._now())))

    async def curve(self, request: Request) -> Response:
        """Return a run's curves between two steps."""
        run = await self._requested_run(request)
        points = min(_MOST_POINTS, _number(request, "points") or _USUAL_POINTS)
        first, last = _number(request, "from"), _number(request, "to")
        answer = await to_thread.run_sync(
            lambda: run.curve(most_points=max(2, points), first_step=first, last_step=last)
        )
        return _json(answer)

    async def tail(self, request: Request) -> Response:
        """Return what is new after an offset, for a page that receives no events."""
        run = await self._requested_run(request)
        after = _number(request, "after") or 0
        return _json(await to_thread.run_sync(lambda: run.tail(after=after)))

    async def live(self, request: Request) -> Response:
        """Stream what is new as server-sent events."""
        run = await self._requested_run(request)
        last = request.headers.get("last-event-id", "")
        after = int(last) if last.isdecimal() and len(last) < _MOST_DIGITS else _number(request, "after") or 0
        events = live_events(run, after=after, now=self._now, stops=lambda: self.is_closing)
        return StreamingResponse(
            events, media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"}
        )

    async def compare(self, request: Request) -> Response:
        """Return the config keys in which two runs differ, with both values."""
        run = await self._requested_run(request)
        other = await self._run_named(request.query_params.get("other", ""))
        found = await to_thread.run_sync(lambda: config_differences([run.config(), other.config()]))
        differences = [{"key": each.key, "this": each.values[0], "other": each.values[1]} for each in found]
        return _json({"name": run.name, "other": other.name, "differences": differences})

    async def metrics(self, request: Request) -> Response:
        """Return the metrics for Prometheus."""
        now = self._now()
        summaries = await to_thread.run_sync(lambda: {run.name: _summary(run, now) for run in self._runs.all()})
        content, kind = metrics_page(summaries, accept=request.headers.get("accept", ""))
        return Response(content, headers={"content-type": kind})

    async def _requested_run(self, request: Request) -> WatchedRun:
        return await self._run_named(request.query_params.get("name", ""))

    async def _run_named(self, name: str) -> WatchedRun:
        run = await to_thread.run_sync(lambda: self._runs.find(name))
        if run is None:
            raise _BadRequest(404, "This run does not exist (any more).")
        return run


_MOST_DIGITS = 18


class _BadRequest(CrashproofError):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _summary(run: WatchedRun, now: float) -> ProgressSummary | None:
    try:
        return run.summary(now=now)
    except Exception:
        # Why stands in the row of the page; no run may cost Prometheus the others.
        return None


def _number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise _BadRequest(400, f"{name} must be an integer of at least 0.")
    return int(text)


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = files("crashproof.dashboard").joinpath("page", name).read_bytes()

    async def answer(request: Request) -> Response:
        # The address has no version in it: after an upgrade the old file must not be shown.
        return Response(content, headers={"content-type": kind, "cache-control": "no-cache"})

    return answer


def _json(answer: object, status: int = 200) -> Response:
    return Response(json_bytes(answer), status_code=status, headers={"content-type": "application/json"})


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, _BadRequest) else 409
    return _json({"error": str(error)}, status)
