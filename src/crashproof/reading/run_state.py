"""A run's state, from its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import msgspec

from crashproof.disk.journal import Damage, Line, line_continues, line_crc, scan, scan_backwards
from crashproof.disk.run_folder import RunFolder
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.checksummed_line import is_intact
from crashproof.records.codec import decode, decode_line, refuse_newer
from crashproof.records.events import Event, SessionStarted
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.requests import AnswerRecord, RequestLine
from crashproof.records.session import TrainingSession
from crashproof.records.snapshots import JournalMark, Manifest, ProgressFile, SessionFile
from crashproof.rules.session import apply_answer, apply_event, apply_metrics, apply_request, begin_session
from crashproof.rules.spending import spending_of

__all__ = [
    "JOURNALS",
    "RunState",
    "losses_from",
    "paid_so_far",
    "read_run",
    "read_snapshot",
]

JOURNALS = ("events.jsonl", "metrics.jsonl", "api_requests.jsonl", "api_recovery.jsonl")
UNKNOWN_SESSION = "training_unknown"


METRICS_DECODER = msgspec.json.Decoder(MetricsSnapshot)
_answer_decoder = msgspec.json.Decoder(AnswerRecord)


_request_decoder: msgspec.json.Decoder[RequestLine] = msgspec.json.Decoder(RequestLine)
EVENT_DECODER: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


_session_decoder = msgspec.json.Decoder(SessionFile)
_manifest_decoder = msgspec.json.Decoder(Manifest)
_summary_decoder = msgspec.json.Decoder(ProgressFile)
T = TypeVar("T")


@dataclass(slots=True)
class RunState:
    """All that the files of a run say."""

    session: TrainingSession | None
    """None where no session has begun."""
    marks: dict[str, JournalMark] = field(default_factory=dict)
    """By a journal's name: where its reading ended."""
    damages: dict[str, list[Damage]] = field(default_factory=dict)
    """By a journal's name: what is broken in the part that was read."""
    remembered: list[CheckpointMetadata] = field(default_factory=list)
    """Checkpoints whose events were lost and that a snapshot still names."""
    read_from_snapshot: bool = False
    """Whether the past was taken from `session.json` and only what came after it from the journals."""


def read_run(folder: RunFolder, *, trust_snapshot: bool = True) -> RunState:
    """The session: its snapshot, if there is a good one, and the journals' tails behind it.

    Costs time for the tails, not for the past; without a snapshot, for all.

    Raises:
        NewerFormat: a file was written by a newer version.
    """
    snapshot = read_snapshot(folder.session, _session_decoder)
    manifest = read_snapshot(folder.manifest, _manifest_decoder)
    read_snapshot(folder.summary, _summary_decoder)
    if snapshot is not None and trust_snapshot and journals_continue(folder, snapshot.journals):
        return read_tails(folder, _plain_session(snapshot), snapshot.journals, read_from_snapshot=True)
    beginning = _beginning(folder, snapshot)
    if beginning is None and not folder.metrics.exists() and manifest is None:
        return RunState(session=None, damages=all_damages(folder))
    state = read_tails(folder, begin_session(beginning or _unknown_beginning()), {}, read_from_snapshot=False)
    events_end = snapshot.journals.get(folder.events.name) if snapshot is not None else None
    are_events_lost = beginning is None if events_end is None else not line_continues(folder.events, events_end)
    if are_events_lost:
        _remember_checkpoints(state, snapshot or manifest)
    return state


def read_snapshot(path: Path, decoder: msgspec.json.Decoder[T]) -> T | None:
    """What a snapshot says, or None where it is missing or damaged: the journals say it too.

    Raises:
        NewerFormat: it was written by a newer version.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if not is_intact(content):
        return None
    refuse_newer(path, content)
    try:
        return decode(content, decoder)
    except msgspec.ValidationError:
        return None


def losses_from(folder: RunFolder, *, step: int, end: int, most: int) -> dict[int, float]:
    """The canonical losses of the steps from `step` on, of the journal's lines before the offset `end`.

    Reads backwards, only as far as needed; of more than `most` steps, the lowest are kept.
    """
    losses: dict[int, float] = {}
    lowest = None
    for line in scan_backwards(folder.metrics, end=end):
        update = decode(line.content, METRICS_DECODER)
        if lowest is not None and update.step >= lowest:
            continue
        lowest = update.step
        if lowest < step:
            break
        losses[lowest] = update.loss
        if len(losses) > most:
            del losses[next(iter(losses))]
    return losses


def paid_so_far(folder: RunFolder) -> Decimal:
    """What all sessions of a folder have paid teachers, in US dollars, what they left in doubt included."""
    ledger = begin_session(_unknown_beginning())
    state = RunState(session=ledger)
    _take_journal(folder.requests, state, {}, _request_decoder, lambda line: apply_request(ledger, line))
    _take_journal(folder.answers, state, {}, _answer_decoder, lambda answer: apply_answer(ledger, answer))
    return spending_of(ledger).committed


def read_tails(
    folder: RunFolder, session: TrainingSession, marks: dict[str, JournalMark], *, read_from_snapshot: bool
) -> RunState:
    state = RunState(session=session, read_from_snapshot=read_from_snapshot)

    def apply_own_answer(answer: AnswerRecord) -> None:
        if answer.session_id == session.session_id:
            apply_answer(session, answer)

    def apply_own_request(line: RequestLine) -> None:
        if line.session_id == session.session_id:
            apply_request(session, line)

    _take_journal(folder.events, state, marks, EVENT_DECODER, lambda event: apply_event(session, event))
    _take_journal(folder.metrics, state, marks, METRICS_DECODER, lambda update: apply_metrics(session, update))
    # An answer settles a request, which must be known by then.
    _take_journal(folder.requests, state, marks, _request_decoder, apply_own_request)
    _take_journal(folder.answers, state, marks, _answer_decoder, apply_own_answer)
    return state


def _take_journal(
    path: Path,
    state: RunState,
    marks: dict[str, JournalMark],
    decoder: msgspec.json.Decoder[T],
    take: Callable[[T], None],
) -> None:
    mark = marks.get(path.name, JournalMark())
    end, num_lines, last_line = mark.num_bytes, mark.num_lines, b""
    for piece in scan(path, start=mark.num_bytes):
        if isinstance(piece, Damage):
            state.damages.setdefault(path.name, []).append(piece)
            continue
        take(decode_line(path, piece.content, decoder))
        end, num_lines, last_line = piece.end, num_lines + 1, piece.content
    state.marks[path.name] = JournalMark(
        num_bytes=end,
        num_lines=num_lines,
        last_line_crc=line_crc(last_line) if last_line else mark.last_line_crc,
    )


def journals_continue(folder: RunFolder, marks: dict[str, JournalMark]) -> bool:
    return all(line_continues(folder.progress / name, mark) for name, mark in marks.items())


def _remember_checkpoints(state: RunState, snapshot: SessionFile | Manifest | None) -> None:
    """Take from a snapshot the checkpoints that lost events had recorded: they must not be forgotten in silence."""
    session = state.session
    if snapshot is None or session is None or session.session_id not in (snapshot.session_id, UNKNOWN_SESSION):
        return
    gone = {each.checkpoint_path for each in session.checkpoints_set_aside}
    known = {each.checkpoint_path for each in session.checkpoints.values()} | gone
    for step, checkpoint in snapshot.checkpoints.items():
        if step not in session.checkpoints and checkpoint.checkpoint_path not in known:
            session.checkpoints[step] = checkpoint
            state.remembered.append(checkpoint)
    session.last_checkpoint_step = max(session.checkpoints, default=None)


def all_damages(folder: RunFolder) -> dict[str, list[Damage]]:
    """By a journal's name; also where no session could be read."""
    found = {
        name: [piece for piece in scan(folder.progress / name) if isinstance(piece, Damage)] for name in JOURNALS
    }
    return {name: pieces for name, pieces in found.items() if pieces}


def _beginning(folder: RunFolder, snapshot: SessionFile | None) -> SessionStarted | None:
    """How the session began: by the events, or, where that line was lost, by the snapshot."""
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
    """For journals whose first event was lost together with the snapshot."""
    return SessionStarted(
        timestamp=0.0, attempt=1, session_id=UNKNOWN_SESSION, config={}, config_hash="", total_steps=1
    )


def _plain_session(snapshot: SessionFile) -> TrainingSession:
    return TrainingSession(**{name: getattr(snapshot, name) for name in TrainingSession.__struct_fields__})
