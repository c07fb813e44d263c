"""Only `disk/` changes a disk, so that what is promised about power loss can be checked by replacing one object."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src" / "crashproof"
MAY_WRITE = {SOURCES / "disk", SOURCES / "testing" / "faulty_disk.py"}
MODULES = [path for path in sorted(SOURCES.rglob("*.py")) if not MAY_WRITE & {path, *path.parents}]

OF_MODULES = {
    "os": {
        *("chmod", "chown", "fdatasync", "fsync", "ftruncate", "link", "makedirs", "mkdir", "mkfifo", "open"),
        *("pwrite", "pwritev", "remove", "removedirs", "rename", "renames", "replace", "rmdir", "sendfile"),
        *("symlink", "sync", "truncate", "unlink", "utime", "write", "writev"),
    },
    "shutil": {"copy", "copy2", "copyfile", "copyfileobj", "copytree", "make_archive", "move", "rmtree"},
    "tempfile": {"mkdtemp", "mkstemp", "NamedTemporaryFile", "TemporaryDirectory", "TemporaryFile"},
}
"""Functions that change a disk, or give a way to."""

OF_PATHS = {
    *("chmod", "hardlink_to", "mkdir", "rename", "rmdir", "symlink_to", "touch", "unlink", "write_bytes"),
    "write_text",
}
"""Methods that only paths have."""


def changes(source: str) -> Iterator[str]:
    """The calls in a module that change the disk: line and name."""
    tree = ast.parse(source)
    bare = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in OF_MODULES.get(node.module or "", set())
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := _name_of_change(node, bare)):
            yield f"line {node.lineno}: {name}"


def _name_of_change(call: ast.Call, bare: set[str]) -> str | None:
    function = call.func
    if isinstance(function, ast.Name):
        if function.id in bare:
            return function.id
        return "open" if function.id == "open" and _opens_to_write(call, mode_at=1) else None
    if not isinstance(function, ast.Attribute):
        return None
    owner = function.value.id if isinstance(function.value, ast.Name) else ""
    if function.attr in OF_MODULES.get(owner, set()):
        return f"{owner}.{function.attr}"
    if function.attr in OF_PATHS:
        return f".{function.attr}"
    # Text is replaced by two arguments, a field by keywords, a path by one argument.
    if function.attr == "replace" and len(call.args) == 1 and not call.keywords:
        return ".replace"
    if function.attr == "open" and _opens_to_write(call, mode_at=0):
        return ".open"
    return None


def _opens_to_write(call: ast.Call, *, mode_at: int) -> bool:
    modes = [each.value for each in call.keywords if each.arg == "mode"] + call.args[mode_at : mode_at + 1]
    return any(isinstance(mode, ast.Constant) and set(str(mode.value)) & set("wax+") for mode in modes)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCES)))
def test_only_disk_changes_the_disk(path):
    assert [] == list(changes(path.read_text()))


def test_disk_and_its_faulty_double_do_change_the_disk():
    found = {path.name for path in SOURCES.rglob("*.py") if list(changes(path.read_text()))}

    assert {"files.py", "faulty_disk.py"} <= found


@pytest.mark.parametrize(
    "source, expected",
    [
        pytest.param("os.replace(a, b)", ["line 1: os.replace"], id="rename"),
        pytest.param("from os import fsync as f\nf(3)", ["line 2: f"], id="imported-function"),
        pytest.param("shutil.rmtree(a)", ["line 1: shutil.rmtree"], id="remove-tree"),
        pytest.param("path.replace(b)", ["line 1: .replace"], id="path-replace"),
        pytest.param("a.replace('-', '_')", [], id="text-replace"),
        pytest.param("structs.replace(a, b=1)", [], id="field-replace"),
        pytest.param("open(p, 'wb')", ["line 1: open"], id="open-to-write"),
        pytest.param("open(p, mode='a')", ["line 1: open"], id="open-to-append"),
        pytest.param("open(p)", [], id="open-to-read"),
        pytest.param("path.open('r+b')", ["line 1: .open"], id="path-open-to-change"),
        pytest.param("path.open('rb')", [], id="path-open-to-read"),
        pytest.param("a.b.write_text('x')", ["line 1: .write_text"], id="write-text"),
        pytest.param("os.path.exists(a)", [], id="harmless"),
    ],
)
def test_the_search_finds_what_it_should(source, expected):
    assert expected == list(changes(source))
