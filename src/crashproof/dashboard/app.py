"""The server's routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from urllib.parse import parse_qsl

import msgspec
from anyio import to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from crashproof.dashboard.access import Access, AccessGuard
from crashproof.dashboard.live import LiveResponse, Streams, live_events
from crashproof.dashboard.prometheus import metrics_page
from crashproof.dashboard.responses import RunList, UnreadableRun, as_json, shown_text
from crashproof.dashboard.watched_run import WatchedRun
from crashproof.dashboard.watched_runs import WatchedRuns
from crashproof.errors import CrashproofError
from crashproof.records.progress import ProgressSummary
from crashproof.rules.comparing import config_differences

__all__ = ["Page", "app_for"]

_MOST_POINTS = 4000
_USUAL_POINTS = 1000
_MOST_SKIPPED = 20
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


def app_for(
    root: Path, access: Access, *, now: Callable[[], float], streams: Streams, follows_links: bool = False
) -> Starlette:
    """Return the application that serves all runs under `root` to requests that `access` allows."""
    page = Page(WatchedRuns(root.absolute(), follows_links=follows_links), now=now, streams=streams)
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

    def __init__(self, runs: WatchedRuns, *, now: Callable[[], float], streams: Streams) -> None:
        self._runs = runs
        self._now = now
        self._streams = streams

    async def runs(self, request: Request) -> Response:
        """List all runs."""
        now = self._now()
        rows = await to_thread.run_sync(lambda: [_row(run, now) for run in self._runs.all()])
        skipped = self._runs.skipped
        return _json(
            RunList(
                root=shown_text(str(self._runs.root)),
                now=now,
                runs=[*rows, *(msgspec.Raw(as_json(each)) for each in self._runs.odd)],
                num_skipped=len(skipped),
                skipped=skipped[:_MOST_SKIPPED],
            )
        )

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
        return LiveResponse(live_events(run, after=after, now=self._now, streams=self._streams), self._streams)

    async def compare(self, request: Request) -> Response:
        """Return the config keys in which two runs differ, with both values."""
        run = await self._requested_run(request)
        other = await self._run_named(_name_in(request, "other"))
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
        return await self._run_named(_name_in(request, "name"))

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


def _row(run: WatchedRun, now: float) -> msgspec.Raw:
    """A run's row as JSON: one that cannot be encoded must not hide the others."""
    try:
        return msgspec.Raw(as_json(run.row(now=now)))
    except (ValueError, OverflowError, RecursionError) as error:
        return msgspec.Raw(as_json(UnreadableRun(name=run.name, health_reason=f"cannot be shown: {error}")))


def _summary(run: WatchedRun, now: float) -> ProgressSummary | None:
    try:
        return run.summary(now=now)
    except Exception:
        # Why stands in the row of the page; no run may cost Prometheus the others.
        return None


def _name_in(request: Request, parameter: str) -> str:
    """The run that a request names: by its name in the list, or by the bytes of its path if they are no text."""
    given = dict(
        parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True, errors="surrogateescape")
    ).get(parameter, "")
    return given if _is_text(given) else shown_text(given)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    return Response(as_json(answer), status_code=status, headers={"content-type": "application/json"})


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, _BadRequest) else 409
    return _json({"error": shown_text(str(error))}, status)
