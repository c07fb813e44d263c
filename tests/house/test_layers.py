"""Imports point down only: the table of DESIGN §7, held against every import of the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "crashproof"
MODULES = sorted(SOURCES.rglob("*.py"))

PARTS_OF_THE_TRACKER = {
    "adopting",
    "alert_delivery",
    "alert_helper",
    "alert_post",
    "alert_watch",
    "alerts",
    "checkpoint_records",
    "curve_writer",
    "digests",
    "heartbeat",
    "metrics",
    "opening",
    "repairing",
    "run_responses",
    "snapshots",
    "tracker",
    "updates",
    "writer",
}

LAYERS = [
    {"errors", "clock", "sealed", "strict_yaml", "wording"},
    {"records", "scalars", "supported"},
    {"encoding"},
    {"disk", "rules"},
    {"checkpoints", "foreign_checkpoints", "curves", "pictures", "responses", "reader", "runs"},
    PARTS_OF_THE_TRACKER,
    {"context"},
    {"loading", "report"},
    {"post_mortem"},
    {"post_mortem_page"},
    {"crashproof"},
    {"teacher", "pytorch", "dashboard", "sinks"},
    {"adapters", "distillation"},
    {"cli"},
]
"""From the ground up; a unit is a module, or a package with all that is in it. `crashproof` is the public face."""

KNOW_EACH_OTHER = PARTS_OF_THE_TRACKER
"""One layer whose units are parts of one thing."""

MAY_USE_OF_THE_LAYER_BELOW = {
    "adapters": {"pytorch"},
    "distillation": {"pytorch", "teacher"},
}
"""Who stands above several siblings and may use only some of them."""

SIBLINGS_OF_FRAMEWORKS = {"teacher", "pytorch", "dashboard", "sinks"}

TORCH_UNITS = {"pytorch", "distillation", "adapters"}

FORBIDDEN_TO_RULES = {
    "asyncio",
    "datetime",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "secrets",
    "shutil",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "torch",
}


def unit_of(path: Path) -> str:
    first = path.relative_to(SOURCES).parts[0].removesuffix(".py")
    return "crashproof" if first == "__init__" else first


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.lineno, f"{node.module}"


def own_imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """The units of crashproof that a module imports from."""
    for line, name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "crashproof":
            yield line, parts[1] if len(parts) > 1 else "crashproof"


def layer_of(unit: str) -> int:
    return next(number for number, units in enumerate(LAYERS) if unit in units)


def is_allowed(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    if importer == "testing":
        return layer_of(imported) <= layer_of("context")
    if imported == "testing":
        return False
    if {importer, imported} <= KNOW_EACH_OTHER:
        return True
    if importer in MAY_USE_OF_THE_LAYER_BELOW and imported in SIBLINGS_OF_FRAMEWORKS:
        return imported in MAY_USE_OF_THE_LAYER_BELOW[importer]
    return layer_of(imported) < layer_of(importer)


def test_every_unit_has_a_layer():
    known = set(chain.from_iterable(LAYERS)) | {"testing"}

    assert set() == {unit_of(path) for path in MODULES} - known


def test_no_unit_stands_in_two_layers():
    units = list(chain.from_iterable(LAYERS))

    assert sorted(set(units)) == sorted(units)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCES)))
def test_imports_point_down_only(path):
    importer = unit_of(path)

    assert [] == [
        f"line {line}: {importer} imports {imported}"
        for line, imported in own_imports_of(path)
        if not is_allowed(importer, imported)
    ]


@pytest.mark.parametrize(
    "importer, imported, expected",
    [
        ("tracker", "records", True),
        ("records", "tracker", False),
        ("rules", "disk", False),
        ("disk", "rules", False),
        ("rules", "rules", True),
        ("reader", "checkpoints", False),
        ("tracker", "writer", True),
        ("opening", "tracker", True),
        ("context", "tracker", True),
        ("tracker", "testing", False),
        ("testing", "tracker", True),
        ("testing", "pytorch", False),
        ("pytorch", "teacher", False),
        ("adapters", "pytorch", True),
        ("adapters", "teacher", False),
        ("distillation", "teacher", True),
        ("distillation", "dashboard", False),
        ("cli", "distillation", True),
        ("distillation", "cli", False),
        ("crashproof", "context", True),
        ("context", "crashproof", False),
    ],
)
def test_the_table_says_what_the_design_says(importer, imported, expected):
    assert expected is is_allowed(importer, imported)


@pytest.mark.parametrize("path", sorted((SOURCES / "rules").glob("*.py")), ids=lambda path: path.name)
def test_rules_touch_no_files_no_clock_and_no_torch(path):
    assert set() == {name.split(".")[0] for _, name in imports_of(path)} & FORBIDDEN_TO_RULES


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCES)))
def test_only_the_pytorch_side_imports_torch(path):
    outside = {name.split(".")[0] for _, name in imports_of(path)} & {"torch", "transformers", "safetensors"}

    assert not outside or unit_of(path) in TORCH_UNITS


@pytest.mark.parametrize("path", sorted((ROOT / "training").glob("*.py")), ids=lambda path: path.name)
def test_a_door_is_a_docstring_imports_and_what_they_are_named(path):
    body = ast.parse(path.read_text()).body
    kinds = (ast.Import, ast.ImportFrom, ast.Assign, ast.If)

    assert ast.get_docstring(ast.parse(path.read_text()))
    assert [] == [f"line {node.lineno}" for node in body[1:] if not isinstance(node, kinds)]
    assert {name.split(".")[0] for _, name in imports_of(path)} <= {"crashproof", "sys"}


@pytest.mark.parametrize(
    "module", ["crashproof", "training.progress_tracker", "training.progress_integration", "crashproof.testing"]
)
def test_the_core_imports_no_framework(module):
    program = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'numpy', 'transformers', 'pydantic', 'yaml', 'rich', 'typer', 'tokenizers'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)

    assert "[]\n" == said.stdout


def test_importing_changes_nothing(tmp_path):
    program = (
        "import logging, os, threading\n"
        "before = (dict(os.environ), os.listdir('.'), logging.root.handlers[:], threading.active_count())\n"
        "import crashproof\n"
        "after = (dict(os.environ), os.listdir('.'), logging.root.handlers[:], threading.active_count())\n"
        "print(before == after, logging.getLogger('crashproof').handlers)"
    )
    # In a folder of its own: other tests may write into this one meanwhile.
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)

    assert "True []\n" == said.stdout
