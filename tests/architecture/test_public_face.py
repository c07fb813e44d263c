"""Public means listed: each `__all__` is sorted and true, and the entry points export the same objects."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

import pytest

import crashproof
import training.progress_integration
import training.progress_tracker

ROOT = Path(__file__).parents[2]
NOT_EXPORTED = {"TYPE_CHECKING", "annotations", "import_module"}
NEEDS_FRAMEWORKS = {"adapters", "cli", "dashboard", "distillation", "pytorch", "exporters", "teacher"}


def module_name(path: Path) -> str:
    base = ROOT / "src" if path.is_relative_to(ROOT / "src") else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


PATHS = {
    module_name(path): path
    for path in [*sorted((ROOT / "src" / "crashproof").rglob("*.py")), *sorted((ROOT / "training").glob("*.py"))]
}


def listed_in(path: Path) -> list[str] | None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return None


def defines_something(path: Path) -> bool:
    """Whether a module has public names of its own, other than imported ones."""
    names = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return any(not name.startswith("_") for name in names)


LISTED = {name: names for name, path in PATHS.items() if (names := listed_in(path)) is not None}


def sort_key(name: str) -> tuple[int, str]:
    """Constants first, then classes, then the rest, each alphabetically."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def import_module(name: str) -> ModuleType:
    if set(name.split(".")) & NEEDS_FRAMEWORKS:
        pytest.importorskip("torch")
        pytest.importorskip("pydantic")
        pytest.importorskip("typer")
    return importlib.import_module(name)


def test_every_module_with_public_names_has_an_all():
    # Entry points that are run promise a command, not names.
    runs = {name for name, path in PATHS.items() if "__main__" in path.read_text()}

    assert set() == {name for name, path in PATHS.items() if defines_something(path)} - LISTED.keys() - runs


@pytest.mark.parametrize("name", LISTED)
def test_an_all_is_sorted_and_has_no_duplicates(name):
    assert sorted(set(LISTED[name]), key=sort_key) == LISTED[name]


@pytest.mark.parametrize("name", LISTED)
def test_every_listed_name_exists(name):
    module = import_module(name)

    assert [] == [each for each in LISTED[name] if not hasattr(module, each)]


@pytest.mark.parametrize("name", [name for name in LISTED if name != "crashproof"])
def test_no_private_name_is_listed(name):
    assert [] == [each for each in LISTED[name] if each.startswith("_")]


def test_the_package_exports_exactly_what_it_lists():
    shown = {
        name
        for name, value in vars(crashproof).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name not in NOT_EXPORTED
    } | crashproof._IMPORTED_AT_FIRST_USE.keys()

    assert sorted(shown, key=sort_key) == crashproof.__all__


@pytest.mark.parametrize(
    "entry_point, names",
    [
        pytest.param(
            training.progress_tracker,
            {"CheckpointMetadata", "MetricsSnapshot", "ProgressTracker", "TrainingSession"},
            id="progress_tracker",
        ),
        pytest.param(
            training.progress_integration,
            {
                "TrainingProgressContext",
                "calculate_metrics_from_step",
                "get_recovery_checkpoint",
                "setup_progress_tracking",
                "training_progress_context",
            },
            id="progress_integration",
        ),
    ],
)
def test_an_entry_point_exports_the_librarys_own_objects(entry_point, names):
    assert names == set(entry_point.__all__)
    assert [] == [name for name in names if getattr(entry_point, name) is not getattr(crashproof, name)]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_every_file_begins_with_its_name(path):
    documentation = ast.get_docstring(ast.parse(path.read_text())) or ""
    first_line = documentation.partition("\n")[0]

    assert first_line.endswith((".", "?"))
    assert len(first_line.split()) <= 16
