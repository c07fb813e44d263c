"""A certificate as one HTML file."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from crashproof.proof.wording import headline, paragraphs
from crashproof.records.proof.certificate import Certificate
from crashproof.views.notebook import escaped

__all__ = ["certificate_page"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; overflow-wrap: anywhere; } h2 { font-size: 1.15em; margin-top: 2em; }
.first { border-left: 6px solid #d55e00; padding: .2em 1em; } .first.exact { border-color: #007a5a; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { text-align: left; vertical-align: top; padding: .2em .8em .2em 0; overflow-wrap: anywhere; }
td, th { border-bottom: 1px solid #8886; }
th { font-weight: 500; opacity: .75; }
pre { overflow-x: auto; padding: .8em; border: 1px solid #8886; border-radius: 6px; }
"""


def certificate_page(certificate: Certificate) -> str:
    """Return a self-contained HTML page: no scripts, no requests."""
    title = headline(certificate)
    kind = "exact" if certificate.problem is None else ""
    told = "".join(f"<p>{escaped(each)}</p>" for each in paragraphs(certificate))
    sections = [
        f"<h1>{escaped(title)}</h1>",
        f'<div class="first {kind}">{told}</div>',
        f"<pre>{escaped(shlex.join(certificate.command))}</pre>",
        *_sections(certificate),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escaped(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def _sections(certificate: Certificate) -> Iterable[str]:
    problem = certificate.problem
    if problem is not None and problem.values:
        rows = [[each.name, each.expected, each.found] for each in problem.values]
        yield "<h2>What differs</h2>" + _table(["value", "uninterrupted", "resumed"], rows)
        if problem.num_values > len(rows):
            yield f"<p>And {problem.num_values - len(rows):,} more.</p>"
    if certificate.kills:
        rows = [
            [each.moment.replace("_", " "), f"{each.after_step:,}", _resumed(each.resumed_at_step)]
            for each in certificate.kills
        ]
        yield "<h2>Kills</h2>" + _table(["moment", "after step", "next step computed"], rows)
    if certificate.compared:
        rows = [[name, f"{count:,}"] for name, count in certificate.compared.items()]
        yield "<h2>What was compared</h2>" + _table(["part", "values at each step"], rows)
    if certificate.passed_over:
        yield f"<h2>Not compared</h2><p>{escaped(', '.join(certificate.passed_over))}</p>"
    if certificate.output_tail:
        yield f"<h2>Output</h2><pre>{escaped(chr(10).join(certificate.output_tail))}</pre>"
    pairs = {**certificate.versions, "made": certificate.made_at, "digest of the run": certificate.digest or "none"}
    pairs |= {f"SHA-256 of {path}": digest for path, digest in certificate.checkpoints.items()}
    pairs |= {f"seconds of {name}": f"{seconds:.1f}" for name, seconds in certificate.seconds.items()}
    yield "<h2>Versions and digests</h2>" + _table(["", ""], [[name, value] for name, value in pairs.items()])


def _resumed(step: int | None) -> str:
    return "none" if step is None else f"{step:,}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def cells(tag: str, values: Sequence[object]) -> str:
        return "".join(f"<{tag}>{escaped(value)}</{tag}>" for value in values)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', heads)}</tr>{body}</table>"
