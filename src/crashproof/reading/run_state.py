"""Read a run's state from its files."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import msgspec

from crashproof.disk.journal import Damage, Line, line_continues, line_crc, scan, scan_backwards
from crashproof.disk.lost_records import MAX_SNAPSHOT_BYTES, Trace, find_traces, has_a_line
from crashproof.disk.regular_file import read_small
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import FileUnreadable, RecordsLost
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.events import Event, SessionStarted
from crashproof.records.lines.codec import decode, decode_line, refuse_newer
from crashproof.records.lines.lazy_decoder import LazyDecoder
from crashproof.records.lines.reformatted_line import restore
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.requests import AnswerRecord, RequestLine
from crashproof.records.session import UNKNOWN_SESSION, TrainingSession
from crashproof.records.snapshots import (
    EarlierManifest,
    EarlierSessionFile,
    JournalMark,
    Manifest,
    ProgressFile,
    SessionFile,
)
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.history import are_parts
from crashproof.rules.identity import canonical_config
from crashproof.rules.session import apply_answer, apply_event, apply_metrics, apply_request, begin_session
from crashproof.rules.spending import spending_of

__all__ = [
    "EVENT_DECODER",
    "JOURNALS",
    "METRICS_DECODER",
    "ReformattedLines",
    "RunState",
    "find_damages",
    "journals_continue",
    "read_losses",
    "read_run",
    "read_snapshot",
    "read_tails",
    "read_total_cost",
]

JOURNALS = ("events.jsonl", "metrics.jsonl", "api_requests.jsonl", "api_recovery.jsonl")

EVENT_DECODER = LazyDecoder[Event](Event)
METRICS_DECODER = LazyDecoder[MetricsSnapshot](MetricsSnapshot)
_answer_decoder = LazyDecoder[AnswerRecord](AnswerRecord)
_request_decoder = LazyDecoder[RequestLine](RequestLine)
_session_decoder = LazyDecoder[SessionFile](SessionFile | EarlierSessionFile)
_manifest_decoder = LazyDecoder[Manifest](Manifest | EarlierManifest)
_summary_decoder = LazyDecoder[ProgressFile](ProgressFile)

log = logging.getLogger("crashproof")

_reported: set[Path] = set()
"""Snapshots that were reported as unreadable."""

T = TypeVar("T")


class ReformattedLines(msgspec.Struct):
    """Intact lines of a journal around which another program has changed white space."""

    offset: int
    """That of the first."""
    num_lines: int = 0


class RunState(msgspec.Struct):
    """What the files of a run contain."""

    session: TrainingSession | None
    """None if no session has begun."""
    marks: dict[str, JournalMark] = msgspec.field(default_factory=dict)
    """For each journal, by name: where its reading ended."""
    damages: dict[str, list[Damage]] = msgspec.field(default_factory=dict)
    """For each journal, by name: the damage in the part that was read."""
    reformatted: dict[str, ReformattedLines] = msgspec.field(default_factory=dict)
    """The same for lines that another program has reformatted."""
    lost: list[Trace] = msgspec.field(default_factory=list)
    """What shows that there was a run, where no record of its checkpoints can be read."""
    missing_lines: dict[str, int] = msgspec.field(default_factory=dict)
    """For each journal, by name: how many of the lines that `session.json` has counted are not there any more."""
    remembered: list[CheckpointMetadata] = msgspec.field(default_factory=list)
    """Checkpoints whose events were lost and that a snapshot still names."""
    read_from_snapshot: bool = False
    """Whether the session was read from `session.json`, and only what follows it from the journals."""


def read_run(folder: RunFolder, *, trust_snapshot: bool = True, accepts_loss: bool = False) -> RunState:
    """Read the session: its snapshot, if there is a usable one, and the tails of the journals behind it.

    Takes time in proportion to the tails; without a snapshot, to the whole journals.

    Raises:
        NewerFormat: a file was written by a newer version.
        RecordsLost: there was a run, and nothing of it can be read; not raised if `accepts_loss`.
    """
    snapshot = read_snapshot(folder.session, _session_decoder)
    manifest = read_snapshot(folder.manifest, _manifest_decoder)
    read_snapshot(folder.summary, _summary_decoder)
    if snapshot is not None and trust_snapshot and journals_continue(folder, snapshot.journals):
        state = read_tails(folder, _plain_session(snapshot), snapshot.journals, read_from_snapshot=True)
        return _without_secrets(state)
    beginning = _read_beginning(folder, snapshot)
    if beginning is None and manifest is None and not has_a_line(folder.events) and not has_a_line(folder.metrics):
        lost = find_traces(folder)
        if lost and not accepts_loss:
            raise RecordsLost(folder.root, found=lost)
        if lost or not folder.metrics.exists():
            return RunState(session=None, damages=find_damages(folder), lost=lost)
    session = begin_session(beginning or _unknown_beginning())
    state = read_tails(folder, session, {}, read_from_snapshot=False)
    if snapshot is None and manifest is None and not _knows_checkpoints(session):
        state.lost = find_traces(folder)
    if snapshot is not None:
        state.missing_lines = _missing_lines(state, snapshot)
    events_end = snapshot.journals.get(folder.events.name) if snapshot is not None else None
    are_events_lost = beginning is None if events_end is None else not line_continues(folder.events, events_end)
    if are_events_lost:
        _remember_checkpoints(state, snapshot or manifest)
    return _without_secrets(state)


def read_snapshot(path: Path, decoder: LazyDecoder[T]) -> T | None:
    """Read a snapshot; None if it is missing or damaged, as the journals hold the same.

    Raises:
        NewerFormat: it was written by a newer version.
    """
    try:
        content = restore(read_small(path, most_bytes=MAX_SNAPSHOT_BYTES))
    except FileNotFoundError:
        return None
    except FileUnreadable as error:
        if path not in _reported:
            # A page looks every second.
            _reported.add(path)
            log.warning("%s The run is read from its journals instead.", error)
        return None
    if content is None:
        return None
    refuse_newer(path, content)
    try:
        return decode(content, decoder)
    except msgspec.ValidationError:
        return None


def read_losses(folder: RunFolder, *, first_step: int, end: int, max_lines: int) -> deque[tuple[int, float]]:
    """Read the canonical losses from `first_step` on, each with its step, in the journal's lines before `end`.

    In the order of writing; a step that was reported in several parts has a loss of each. Reads backwards, only as
    far as needed; of more than `max_lines`, the first are kept.
    """
    losses: deque[tuple[int, float]] = deque(maxlen=max_lines)
    lowest: MetricsSnapshot | None = None
    is_beside_lowest = False
    for line in scan_backwards(folder.metrics, end=end):
        update = decode_line(folder.metrics, line.content, METRICS_DECODER)
        is_part = is_beside_lowest and lowest is not None and are_parts(update, lowest)
        is_beside_lowest = is_part or lowest is None or update.step < lowest.step
        if not is_beside_lowest:
            continue
        if update.step < first_step:
            break
        lowest = update
        losses.appendleft((update.step, update.loss))
    return losses


def read_total_cost(folder: RunFolder) -> Decimal:
    """Add up what all sessions of a folder have paid teachers, in US dollars, including uncertain payments."""
    ledger = begin_session(_unknown_beginning())
    state = RunState(session=ledger)
    _read_journal(folder.requests, state, {}, _request_decoder, lambda line: apply_request(ledger, line))
    _read_journal(folder.answers, state, {}, _answer_decoder, lambda answer: apply_answer(ledger, answer))
    return spending_of(ledger).committed


def read_tails(
    folder: RunFolder, session: TrainingSession, marks: dict[str, JournalMark], *, read_from_snapshot: bool
) -> RunState:
    """Bring a session up to date with the lines of the journals behind `marks`."""
    state = RunState(session=session, read_from_snapshot=read_from_snapshot)

    def apply_own_answer(answer: AnswerRecord) -> None:
        if answer.session_id == session.session_id:
            apply_answer(session, answer)

    def apply_own_request(line: RequestLine) -> None:
        if line.session_id == session.session_id:
            apply_request(session, line)

    _read_journal(folder.events, state, marks, EVENT_DECODER, lambda event: apply_event(session, event))
    _read_journal(folder.metrics, state, marks, METRICS_DECODER, lambda update: apply_metrics(session, update))
    # An answer settles a request, which must be known by then.
    _read_journal(folder.requests, state, marks, _request_decoder, apply_own_request)
    _read_journal(folder.answers, state, marks, _answer_decoder, apply_own_answer)
    return state


def _read_journal(
    path: Path,
    state: RunState,
    marks: dict[str, JournalMark],
    decoder: LazyDecoder[T],
    take: Callable[[T], object],
) -> None:
    mark = marks.get(path.name, JournalMark())
    end, num_lines, last_line = mark.num_bytes, mark.num_lines, b""
    for piece in scan(path, start=mark.num_bytes):
        if isinstance(piece, Damage):
            state.damages.setdefault(path.name, []).append(piece)
            continue
        if piece.is_reformatted:
            state.reformatted.setdefault(path.name, ReformattedLines(piece.offset)).num_lines += 1
        take(decode_line(path, piece.content, decoder))
        end, num_lines, last_line = piece.end, num_lines + 1, piece.content
    state.marks[path.name] = JournalMark(
        num_bytes=end,
        num_lines=num_lines,
        last_line_crc=line_crc(last_line) if last_line else mark.last_line_crc,
    )


def journals_continue(folder: RunFolder, marks: dict[str, JournalMark]) -> bool:
    """Whether every journal still has the line that its mark ends with."""
    return all(name in JOURNALS and line_continues(folder.progress / name, mark) for name, mark in marks.items())


def _knows_checkpoints(session: TrainingSession) -> bool:
    catalog = CheckpointCatalog(session)
    return bool(catalog.all() or catalog.quarantined())


def _missing_lines(state: RunState, snapshot: SessionFile) -> dict[str, int]:
    """How many lines of each journal a snapshot has counted that are not there any more."""
    missing = {
        name: mark.num_lines - state.marks[name].num_lines
        for name, mark in snapshot.journals.items()
        if name in state.marks
    }
    return {name: num_lines for name, num_lines in missing.items() if num_lines > 0}


def _remember_checkpoints(state: RunState, snapshot: SessionFile | Manifest | None) -> None:
    """Recover from a snapshot the checkpoints whose events were lost."""
    session = state.session
    if snapshot is None or session is None or session.session_id not in (snapshot.session_id, UNKNOWN_SESSION):
        return
    named = [*snapshot.checkpoints.values(), *snapshot.checkpoints_beside]
    state.remembered += CheckpointCatalog(session).remember(named)


def find_damages(folder: RunFolder) -> dict[str, list[Damage]]:
    """Find all damage, by the name of the journal; works without a session too."""
    found = {
        name: [piece for piece in scan(folder.progress / name) if isinstance(piece, Damage)] for name in JOURNALS
    }
    return {name: pieces for name, pieces in found.items() if pieces}


def _read_beginning(folder: RunFolder, snapshot: SessionFile | None) -> SessionStarted | None:
    """Read how the session began from the events or, if that line was lost, from the snapshot."""
    for piece in scan(folder.events):
        if isinstance(piece, Line):
            event = decode_line(folder.events, piece.content, EVENT_DECODER)
            if isinstance(event, SessionStarted):
                return event
    if snapshot is None:
        return None
    return SessionStarted(
        timestamp=snapshot.start_time,
        attempt=1,
        session_id=snapshot.session_id,
        config=snapshot.config,
        config_hash=snapshot.config_hash,
        total_steps=snapshot.total_steps_target,
        api_cost_before=snapshot.api_cost_before,
    )


def _unknown_beginning() -> SessionStarted:
    """The beginning to assume if the first event and the snapshot were lost."""
    return SessionStarted(
        timestamp=0.0, attempt=1, session_id=UNKNOWN_SESSION, config={}, config_hash="", total_steps=1
    )


def _plain_session(snapshot: SessionFile) -> TrainingSession:
    return TrainingSession(**{name: getattr(snapshot, name) for name in TrainingSession.__struct_fields__})


def _without_secrets(state: RunState) -> RunState:
    """The state with a config that may be shown: an earlier version may have hidden less of it."""
    if state.session is not None:
        state.session.config = canonical_config(state.session.config)
    return state
