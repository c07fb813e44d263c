"""Watch a run on a live screen."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from crashproof.cli.arguments import Folder
from crashproof.cli.exit_codes import exit_code_for
from crashproof.cli.output import print_json, print_json_line, say
from crashproof.cli.screen import Seen, event_in_words, plain_line, screen_lines
from crashproof.disk.journal import Line, line_continues, line_crc, scan
from crashproof.disk.lock import holder_of
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NewerFormat, NotARun, UnknownRecord
from crashproof.reading.curves import CurveFollower
from crashproof.reading.run_reader import RunReader
from crashproof.reading.session_follower import SessionFollower
from crashproof.records.codec import decode_line
from crashproof.records.curves import CurvePoint
from crashproof.records.events import Event
from crashproof.records.snapshots import JournalMark
from crashproof.rules.pace import estimate_remaining
from crashproof.rules.summary import progress_summary

__all__ = ["watch"]

_READING_SECONDS = 0.3
_SHARE_FOR_THE_CURVE = 0.1
"""Of the time at most: a long curve is drawn anew less often than the numbers."""
_LEAST_PLAIN_SECONDS = 5.0
_NUM_EVENTS = 20
_PROMPT_LINES = 3
_STYLES = {"RUNNING": "green", "STARTING": "green", "COMPLETE": "green", "STALLED": "yellow"}

_event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def watch(
    folder: Folder,
    once: Annotated[bool, typer.Option("--once", help="Draw one screen and end.")] = False,
    stay: Annotated[bool, typer.Option("--stay", help="Go on when the run has ended: it may be restarted.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait where DIR holds no run yet.")] = False,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, metavar="N", help="Look so often; 1, or 5 where it is no terminal.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per look instead of a screen.")] = False,
) -> None:
    """Watch a run: progress, time left, loss curve, pace, events. Changes nothing.

    Where the output is no terminal, it is a line every few seconds. Ends when
    the run ends, with the exit code of `crashproof status`; Ctrl-C ends it
    quietly, with 0. In the curve each column goes from the lowest to the
    highest loss in it, so a spike of one step is seen; ! marks NaN.

    Exit codes: 0 it runs, starts or is complete; 2 an error; 3 stalled;
    4 diverging, or its loss is not finite; 5 crashed, or an exception ended it;
    6 it ended before its last step and can be started again; 7 not started.

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
    run = _Watched(str(folder), _run_folder(folder, waits=waits, pause=min(pause, 1.0)))
    if once:
        seen = run.look(most_seconds=None)
        if as_json:
            print_json(seen.summary)
        else:
            _say_lines(_lines(seen, Console()))
        return exit_code_for(seen.summary.health)
    if is_screen:
        return _on_a_screen(run, pause, stays=stays)
    tell: Callable[[Seen], None] = _tell_json if as_json else _tell_line
    while True:
        seen = run.look()
        tell(seen)
        if not stays and _has_ended(seen):
            return exit_code_for(seen.summary.health)
        time.sleep(pause)


def _on_a_screen(run: _Watched, pause: float, *, stays: bool) -> int:
    console = Console(highlight=False)
    seen = run.look()
    try:
        with Live(_styled(seen, console), console=console, screen=True, auto_refresh=False, transient=True) as live:
            while stays or not _has_ended(seen):
                live.update(_styled(seen, console), refresh=True)
                time.sleep(pause)
                seen = run.look()
    finally:
        # The live screen is gone with its last picture; the end of a run is worth keeping.
        _say_lines(_lines(seen, console, is_whole_screen=False))
    return exit_code_for(seen.summary.health)


class _Watched:
    """A run, read further at each look; an error in a look shows what was seen before."""

    def __init__(self, name: str, folder: RunFolder) -> None:
        self._name = name
        self._folder = folder
        self._session = SessionFollower(folder)
        self._curve = CurveFollower(folder)
        self._points: Sequence[CurvePoint] = ()
        self._curve_share = 1.0
        self._draws_again_at = 0.0
        self._events: deque[tuple[float, str]] = deque(maxlen=_NUM_EVENTS)
        self._events_mark = JournalMark()
        self._seen: Seen | None = None

    def look(self, *, most_seconds: float | None = _READING_SECONDS) -> Seen:
        """How the run stands now.

        Raises:
            NotARun, NewerFormat, UnknownRecord, OSError: at the first look; later, where a newer version has
                written it since.
        """
        try:
            self._seen = self._looked(most_seconds)
        except (NewerFormat, UnknownRecord):
            raise
        except (NotARun, OSError) as error:
            # Its folder may be moved or archived at this moment.
            if self._seen is None:
                raise
            trouble = error.strerror or "gone" if isinstance(error, OSError) else "the folder holds no run now"
            self._seen = replace(self._seen, trouble=trouble, now=time.time())
        return self._seen

    def _looked(self, most_seconds: float | None) -> Seen:
        now = time.time()
        session = self._session.session()
        is_alive = holder_of(self._folder.lock) is not None
        summary = progress_summary(session, now=now, wall_clock_hours=session.wall_clock_hours, is_alive=is_alive)
        self._read_curve(most_seconds)
        self._read_events()
        estimate = estimate_remaining(session.pace, 1)
        return Seen(
            name=self._name,
            summary=summary,
            seconds_a_step=None if estimate is None else estimate.seconds,
            points=self._points,
            curve_share=self._curve_share,
            events=list(self._events),
            trouble="",
            now=now,
        )

    def _read_curve(self, most_seconds: float | None) -> None:
        is_read = self._curve.refresh(most_seconds=most_seconds)
        started = time.monotonic()
        if started < self._draws_again_at:
            return
        curve = self._curve.curve(most_points=2 * _columns())
        self._points = curve.points
        self._curve_share = 1.0 if is_read else curve.end / max(1, curve.num_bytes)
        self._draws_again_at = time.monotonic() + (time.monotonic() - started) / _SHARE_FOR_THE_CURVE

    def _read_events(self) -> None:
        path = self._folder.events
        if not line_continues(path, self._events_mark):
            # Mended, or another session has begun.
            self._events.clear()
            self._events_mark = JournalMark()
        for line in scan(path, start=self._events_mark.num_bytes):
            if isinstance(line, Line):
                event = decode_line(path, line.content, _event_decoder)
                self._events_mark = JournalMark(num_bytes=line.end, last_line_crc=line_crc(line.content))
                if words := event_in_words(event):
                    self._events.append((event.timestamp, words))


def _run_folder(folder: Path, *, waits: bool, pause: float) -> RunFolder:
    has_said = False
    while True:
        try:
            reader = RunReader.open(folder)
            reader.session()
        except NotARun:
            if not waits:
                raise
            if not has_said:
                say(f"Waiting for a run in {folder}.")
                has_said = True
            time.sleep(pause)
        else:
            return reader.folder


def _has_ended(seen: Seen) -> bool:
    return not seen.summary.health.is_live


def _tell_line(seen: Seen) -> None:
    say(plain_line(seen))


def _tell_json(seen: Seen) -> None:
    print_json_line(seen.summary)
    sys.stdout.flush()


def _columns() -> int:
    return Console().width


def _lines(seen: Seen, console: Console, *, is_whole_screen: bool = True) -> list[str]:
    is_unicode = (console.encoding or "").lower().replace("-", "") == "utf8"
    # The shell's prompt comes below the last one.
    height = console.height if is_whole_screen else max(1, console.height - _PROMPT_LINES)
    return screen_lines(seen, width=console.width, height=height, is_unicode=is_unicode)


def _say_lines(lines: Sequence[str]) -> None:
    for line in lines:
        say(line)


def _styled(seen: Seen, console: Console) -> Text:
    """The lines, with a little colour for those who have it; nothing is told by colour alone."""
    lines = _lines(seen, console)
    text = Text("\n".join(lines), no_wrap=True, overflow="crop")
    text.stylize("bold", 0, len(lines[0]))
    state = seen.summary.health.replace("_", " ").upper()
    text.highlight_words([state], style=_STYLES.get(state, "red"))
    return text
