"""A post-mortem as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from crashproof.formatting import as_bytes, as_duration
from crashproof.records.events import Event
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import AttemptRecord
from crashproof.records.states import HealthState
from crashproof.rules.identity import config_leaves
from crashproof.views.notebook import escaped
from crashproof.views.post_mortem import ExaminedCheckpoint, PostMortem, Surroundings

__all__ = ["post_mortem_page"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; overflow-wrap: anywhere; } h2 { font-size: 1.15em; margin-top: 2em; }
.first { border-left: 6px solid #d55e00; padding: .2em 1em; } .first.well { border-color: #007a5a; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { text-align: left; vertical-align: top; padding: .2em .8em .2em 0; overflow-wrap: anywhere; }
td, th { border-bottom: 1px solid #8886; }
th { font-weight: 500; opacity: .75; } td.number, th.number { text-align: right; }
pre { overflow-x: auto; padding: .8em; border: 1px solid #8886; border-radius: 6px; }
.wide { overflow-x: auto; }
"""


def post_mortem_page(found: PostMortem) -> str:
    """Return a self-contained HTML page: no scripts, no requests."""
    around = found.surroundings
    kind = "well" if found.state in (HealthState.COMPLETE, HealthState.RUNNING, HealthState.STARTING) else ""
    sections = [
        f"<h1>{escaped(found.name)}: {escaped(found.state.replace('_', ' '))}</h1>",
        f'<div class="first {kind}"><p><b>{escaped(found.sentence)}</b></p>{_list(found.clues)}'
        f"<p>{escaped(found.next_step)}</p></div>",
        f"<p>Examined {_moment(found.examined_at)} on {escaped(around.host)}.</p>",
        _section("Loss", found.curve or "<p>No loss was reported.</p>"),
        _section("Last steps", _updates(found.last_updates)),
        _section("Attempts", _attempts(found.attempts)),
        _section("Events of the newest attempt, newest first", _events(found.events)),
        _section("Checkpoints", _checkpoint_table(found.checkpoints)),
        _section("Damage", _list(found.damage) or "<p>Every line of its journals is intact.</p>"),
        _section("Machine", _machine(around)),
        _section("Log", _log(around)),
        _section("Summary", _pairs(dict(config_leaves(msgspec.to_builtins(found.summary))))),
        _section("Config", _pairs(dict(config_leaves(found.config)))),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escaped(found.name)}: post-mortem</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{escaped(title)}</h2>{content}"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escaped(line)}</li>' for line in lines)}</ul>" if lines else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]], *, num_numbers: int = 0) -> str:
    """Return a table whose first `num_numbers` columns are right-aligned."""

    def cells(tag: str, values: Sequence[object]) -> str:
        kinds = (' class="number"' if place < num_numbers else "" for place in range(len(values)))
        return "".join(f"<{tag}{kind}>{escaped(value)}</{tag}>" for kind, value in zip(kinds, values, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{cells("th", heads)}</tr>{body}</table></div>'


def _updates(updates: Sequence[MetricsSnapshot]) -> str:
    if not updates:
        return "<p>None.</p>"
    names = list(dict.fromkeys(name for each in updates for name in each.loss_components))
    rows = [
        [
            f"{each.step:,}",
            f"{each.loss:.6g}",
            *(f"{each.loss_components[name]:.6g}" if name in each.loss_components else "" for name in names),
            f"{each.learning_rate:.4g}",
            _moment(each.timestamp),
        ]
        for each in reversed(updates)
    ]
    return _table(["step", "loss", *names, "learning rate", "when"], rows, num_numbers=3 + len(names))


def _attempts(attempts: Sequence[AttemptRecord]) -> str:
    rows = [
        [
            each.attempt,
            _moment(each.start),
            "none" if each.first_step is None else f"{each.first_step:,} to {each.last_step:,}",
            f"{each.how}: {each.error}" if each.error else each.how,
            f"{each.host} {each.pid}",
            (each.git_commit or "")[:12],
        ]
        for each in reversed(attempts)
    ]
    return _table(["attempt", "started", "steps", "end", "process", "commit"], rows, num_numbers=1)


def _events(events: Sequence[Event]) -> str:
    if not events:
        return "<p>Nothing.</p>"
    rows = []
    for each in events:
        fields = {name: value for name, value in msgspec.to_builtins(each).items() if name not in _SHOWN_ELSEWHERE}
        text = ", ".join(f"{name} {value}" for name, value in fields.items())
        rows.append([_moment(each.timestamp), str(each.__struct_config__.tag).replace("_", " "), text])
    return _table(["when", "event", "details"], rows)


_SHOWN_ELSEWHERE = frozenset({"attempt", "config", "config_hash", "event", "timestamp", "v"})


def _checkpoint_table(checkpoints: Sequence[ExaminedCheckpoint]) -> str:
    if not checkpoints:
        return "<p>None was recorded.</p>"
    rows = [
        [
            f"{each.step:,}",
            each.path,
            "unknown" if each.num_bytes is None else as_bytes(each.num_bytes),
            each.problem or "intact",
        ]
        for each in reversed(checkpoints)
    ]
    return _table(["step", "path", "size", "integrity"], rows, num_numbers=1)


def _machine(around: Surroundings) -> str:
    disk = "unknown"
    if around.free_bytes is not None and around.disk_bytes is not None:
        disk = f"{as_bytes(around.free_bytes)} of {as_bytes(around.disk_bytes)} free"
    kernel = _list(around.kernel_lines or []) or (
        "<p>The kernel's log cannot be read without root; <code>dmesg -T | grep -i oom</code> as root shows whether "
        "the process was killed for lack of memory (OOM).</p>"
        if around.kernel_lines is None
        else "<p>The kernel's log has no process killed for lack of memory (OOM).</p>"
    )
    return _pairs({"host": around.host, "disk": disk, **around.facts}) + kernel


def _log(around: Surroundings) -> str:
    if around.log_name is None:
        return "<p>No log was found beside the run. Pass one with <code>--log</code>.</p>"
    lines = "\n".join(around.log_tail)
    return f"<p>{escaped(around.log_name)}, its last {len(around.log_tail)} lines:</p><pre>{escaped(lines)}</pre>"


def _pairs(pairs: Mapping[str, object]) -> str:
    return _table(["", ""], [[name, value] for name, value in pairs.items()])


def _moment(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    try:
        return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        # A nonsensical clock must not hide the rest.
        return f"{as_duration(seconds)} after 1970"
