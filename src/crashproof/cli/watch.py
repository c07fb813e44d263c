"""Watch a run on a live screen."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from crashproof.cli.arguments import Folder
from crashproof.cli.exit_codes import exit_code_for
from crashproof.cli.output import print_json, print_json_line, say, say_lines
from crashproof.cli.screen import Seen, event_in_words, plain_line, screen_lines
from crashproof.disk.journal import Line, line_continues, line_crc, scan
from crashproof.disk.lock import holder_of
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NewerFormat, NotARun, UnknownRecord
from crashproof.reading.curves import CurveFollower
from crashproof.reading.run_reader import RunReader
from crashproof.reading.session_follower import SessionFollower
from crashproof.records.curves import CurvePoint
from crashproof.records.events import Event
from crashproof.records.lines.codec import decode_line
from crashproof.records.lines.lazy_decoder import LazyDecoder
from crashproof.records.snapshots import JournalMark
from crashproof.rules.pace import pace_of
from crashproof.rules.summary import progress_summary
from crashproof.rules.time_left.estimate import seconds_per_step

__all__ = ["watch"]

_READING_SECONDS = 0.3
_SHARE_FOR_THE_CURVE = 0.1
"""Of the time at most: a long curve is redrawn less often than the numbers."""
_LEAST_PLAIN_SECONDS = 5.0
_NUM_EVENTS = 20
_PROMPT_LINES = 3
_STYLES = {"RUNNING": "green", "STARTING": "green", "COMPLETE": "green", "STALLED": "yellow"}

_event_decoder = LazyDecoder[Event](Event)


def watch(
    folder: Folder,
    once: Annotated[bool, typer.Option("--once", help="Print one screen and exit.")] = False,
    stay: Annotated[
        bool, typer.Option("--stay", help="Keep watching after the run has ended: it may be restarted.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for a run to appear in DIR.")] = False,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1, metavar="N", help="Refresh interval in seconds; by default 1, or 5 without a terminal."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON line per refresh instead of a screen.")
    ] = False,
) -> None:
    """Watch a run live: progress, time left, loss curve, pace, events. Changes nothing.

    Without a terminal, prints one line per refresh. Exits when the run ends,
    with the exit code of `crashproof status`; after Ctrl-C, with 0. Each column
    of the curve spans the lowest to the highest loss, so a spike of one step is
    visible; ! marks non-finite losses.

    Exit codes: 0 running, starting or complete; 2 error; 3 stalled;
    4 diverging or non-finite loss; 5 crashed, or ended by an exception;
    6 ended before the last step, and can be started again; 7 not started;
    8 checkpoints cannot be saved.

    Example: crashproof watch runs/quickstart
    """
    try:
        code = _watch(folder, once=once, stays=stay, waits=wait, seconds=seconds, as_json=as_json)
    except KeyboardInterrupt:
        code = 0
    raise typer.Exit(code)


def _watch(folder: Path, *, once: bool, stays: bool, waits: bool, seconds: float | None, as_json: bool) -> int:
    is_screen = sys.stdout.isatty() and not as_json and not once
    pause = seconds or (1.0 if is_screen else _LEAST_PLAIN_SECONDS)
    run = _Watched(str(folder), _find_run(folder, waits=waits, pause=min(pause, 1.0)))
    if once:
        seen = run.refresh(most_seconds=None)
        if as_json:
            print_json(seen.summary)
        else:
            say_lines(_lines(seen, Console()))
        return exit_code_for(seen.summary.health)
    if is_screen:
        return _on_a_screen(run, pause, stays=stays)
    while True:
        seen = run.refresh()
        if as_json:
            print_json_line(seen.summary)
            sys.stdout.flush()
        else:
            say(plain_line(seen))
        if not stays and not seen.summary.health.is_live:
            return exit_code_for(seen.summary.health)
        time.sleep(pause)


def _on_a_screen(run: _Watched, pause: float, *, stays: bool) -> int:
    console = Console(highlight=False)
    seen = run.refresh()
    try:
        with Live(_styled(seen, console), console=console, screen=True, auto_refresh=False, transient=True) as live:
            while stays or seen.summary.health.is_live:
                live.update(_styled(seen, console), refresh=True)
                time.sleep(pause)
                seen = run.refresh()
    finally:
        # The live screen is erased; the last state of the run stays in the scrollback.
        say_lines(_lines(seen, console, is_whole_screen=False))
    return exit_code_for(seen.summary.health)


class _Watched:
    """A run that is read incrementally; after an error, what was seen before stays."""

    def __init__(self, name: str, folder: RunFolder) -> None:
        self._name = name
        self._folder = folder
        self._session = SessionFollower(folder)
        self._curve = CurveFollower(folder)
        self._points: Sequence[CurvePoint] = ()
        self._curve_share = 1.0
        self._redraw_at = 0.0
        self._events: deque[tuple[float, str]] = deque(maxlen=_NUM_EVENTS)
        self._events_mark = JournalMark()
        self._seen: Seen | None = None

    def refresh(self, *, most_seconds: float | None = _READING_SECONDS) -> Seen:
        """Read what is new and return the state of the run.

        Raises:
            NotARun, OSError: at the first refresh; later ones report them in `trouble`.
            NewerFormat, UnknownRecord: a newer version has written the run.
        """
        try:
            self._seen = self._read(most_seconds)
        except (NewerFormat, UnknownRecord):
            raise
        except (NotARun, OSError) as error:
            # The folder may be moved or archived at this moment.
            if self._seen is None:
                raise
            trouble = error.strerror or "gone" if isinstance(error, OSError) else "no run in the folder any more"
            self._seen = replace(self._seen, trouble=trouble, now=time.time())
        return self._seen

    def _read(self, most_seconds: float | None) -> Seen:
        now = time.time()
        session = self._session.session()
        is_alive = holder_of(self._folder.lock) is not None
        summary = progress_summary(session, now=now, wall_clock_hours=session.wall_clock_hours, is_alive=is_alive)
        self._read_curve(most_seconds)
        self._read_events()
        return Seen(
            name=self._name,
            summary=summary,
            seconds_a_step=seconds_per_step(pace_of(session)),
            points=self._points,
            curve_share=self._curve_share,
            events=list(self._events),
            trouble="",
            now=now,
        )

    def _read_curve(self, most_seconds: float | None) -> None:
        is_read = self._curve.refresh(most_seconds=most_seconds)
        started = time.monotonic()
        if started < self._redraw_at:
            return
        curve = self._curve.curve(most_points=2 * Console().width)
        self._points = curve.points
        self._curve_share = 1.0 if is_read else curve.end / max(1, curve.num_bytes)
        self._redraw_at = time.monotonic() + (time.monotonic() - started) / _SHARE_FOR_THE_CURVE

    def _read_events(self) -> None:
        path = self._folder.events
        if not line_continues(path, self._events_mark):
            # The journal was repaired, or another session has started.
            self._events.clear()
            self._events_mark = JournalMark()
        for line in scan(path, start=self._events_mark.num_bytes):
            if isinstance(line, Line):
                event = decode_line(path, line.content, _event_decoder)
                self._events_mark = JournalMark(num_bytes=line.end, last_line_crc=line_crc(line.content))
                if words := event_in_words(event):
                    self._events.append((event.timestamp, words))


def _find_run(folder: Path, *, waits: bool, pause: float) -> RunFolder:
    is_announced = False
    while True:
        try:
            reader = RunReader.open(folder)
            is_started = bool(reader.session().attempts)
        except NotARun:
            if not waits:
                raise
            is_started = False
        if is_started or not waits:
            return reader.folder
        if not is_announced:
            say(f"Waiting for a run in {folder}.")
            is_announced = True
        time.sleep(pause)


def _lines(seen: Seen, console: Console, *, is_whole_screen: bool = True) -> list[str]:
    is_unicode = (console.encoding or "").lower().replace("-", "") == "utf8"
    # Leaves room for the shell's prompt.
    height = console.height if is_whole_screen else max(1, console.height - _PROMPT_LINES)
    return screen_lines(seen, width=console.width, height=height, is_unicode=is_unicode)


def _styled(seen: Seen, console: Console) -> Text:
    """The lines with colour; no information depends on it."""
    lines = _lines(seen, console)
    text = Text("\n".join(lines), no_wrap=True, overflow="crop")
    text.stylize("bold", 0, len(lines[0]))
    state = seen.summary.health.replace("_", " ").upper()
    text.highlight_words([state], style=_STYLES.get(state, "red"))
    return text
