"""Every text that a person reads, in one file: `python tests/architecture/texts.py > build/texts.txt`.

The help of each command and option, and the templates of errors, hints and log lines, each with the place where it
stands. Read them aloud: would a senior engineer say it like this?
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src" / "crashproof"
OUTPUT_CALLS = {"debug", "info", "warning", "error", "exception", "log", "say", "echo", "print"}


def template(node: ast.AST) -> str | None:
    """A literal or f-string as its template, with `{…}` where a value stands; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{…}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [template(node.left), template(node.right)]
        return None if None in parts else "".join(map(str, parts))
    return None


def is_sentence(text: str) -> bool:
    """Whether it is prose, and no name, path or format."""
    return len(re.findall(r"[A-Za-z]{2,}", text)) >= 3 and " " in text.strip()


def messages_in(path: Path) -> Iterator[tuple[int, str]]:
    """Line and template of each text that is raised, logged or printed, and of each constant sentence."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    inside: set[int] = set()
    for node in ast.walk(tree):
        text = template(node)
        if text is None or id(node) in docstrings | inside:
            continue
        inside |= {id(child) for child in ast.walk(node) if child is not node}
        if is_sentence(text):
            yield node.lineno, " ".join(text.split())


def helps() -> Iterator[tuple[str, str]]:
    """The help page of the program and of each command."""
    from typer.main import get_command
    from typer.testing import CliRunner

    from crashproof.cli.app import app

    runner = CliRunner(env={"COLUMNS": "118", "TERM": "dumb", "NO_COLOR": "1"})
    yield "crashproof", runner.invoke(app, ["--help"]).output
    for name in sorted(get_command(app).commands):  # type: ignore[attr-defined]
        yield f"crashproof {name}", runner.invoke(app, [name, "--help"]).output


def main() -> None:
    out = sys.stdout
    for name, page in helps():
        out.write(f"=== {name} --help\n{page}\n")
    for path in sorted(SOURCES.rglob("*.py")):
        found = sorted(messages_in(path))
        if found:
            out.write(f"=== {path.relative_to(SOURCES)}\n")
            for line, text in found:
                out.write(f"{line:5d}  {text}\n")
            out.write("\n")


if __name__ == "__main__":
    main()
