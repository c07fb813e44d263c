"""Imports point down only: every import of the sources is checked against the table of layers."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "crashproof"
MODULES = sorted(SOURCES.rglob("*.py"))

LAYERS = {
    "": [
        {"clock", "digests", "errors", "formatting", "hosts", "medians", "patterns", "strict_yaml", "threads"},
        {"json_lines", "notices", "optional_dependencies", "plain_values"},
        {"scalars"},
        {"odd_values"},
        {"data_files", "records"},
        {"samples"},
        {"disk", "rules"},
        {"answers", "checkpoints", "reading"},
        {"alerts"},
        {"tracking"},
        {"views"},
        {"crashproof"},
        {"dashboard", "exporters", "pytorch", "supervisor", "teacher"},
        {"adapters", "distillation", "proof"},
        {"testing"},
        {"cli"},
    ],
    "teacher": [
        {"replies"},
        {"client", "shared_store"},
        {"teacher"},
        {"jobs"},
    ],
    "distillation": [
        {"distillation"},
        {"display", "schedule", "settings", "text"},
        {"losses"},
        {"data", "models"},
        {"tasks", "teachers"},
        {"evaluation"},
        {"recipes"},
        {"training"},
        {"start_checks"},
        {"trainer"},
        {"command"},
    ],
}
"""From the bottom up, for the whole and inside the two largest packages: a unit is a module, or a package with all
that is in it. Each imports only from layers below its own; a package's own name is its `__init__`."""

LARGEST_PACKAGE = 15
"""Modules of a package, its `__init__` not counted: few enough to find the right one by reading their names."""

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


def module_of(path: Path) -> str:
    """The dotted name below the package, such as `teacher.client.limits`; a package's is its `__init__`."""
    return ".".join(path.relative_to(SOURCES).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def unit_of(module: str, inside: str) -> str | None:
    """The unit of a module in the table of a package; None where it lies outside that package."""
    if not inside:
        return module.split(".")[0] or "crashproof"
    first, _, rest = module.partition(".")
    return (rest.split(".")[0] or inside) if first == inside else None


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.lineno, f"{node.module}"


MODULE_NAMES = {module_of(path) for path in MODULES}


def own_imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module, below the package, of all that a module imports from crashproof."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("crashproof."):
            package = f"{node.module}".removeprefix("crashproof").lstrip(".")
            for alias in node.names:
                module = f"{package}.{alias.name}".lstrip(".")
                yield node.lineno, module if module in MODULE_NAMES else package
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if f"{alias.name}.".startswith("crashproof.")]
            yield from ((node.lineno, name.removeprefix("crashproof").lstrip(".")) for name in names)


def layer_of(unit: str, inside: str) -> int:
    return next(number for number, units in enumerate(LAYERS[inside]) if unit in units)


def is_allowed(importer: str, imported: str) -> bool:
    """Whether a module may import another, both as dotted names below the package."""
    for inside in LAYERS:
        above, below = unit_of(importer, inside), unit_of(imported, inside)
        if above is None or below is None or above == below:
            continue
        if layer_of(below, inside) >= layer_of(above, inside):
            return False
    return True


@pytest.mark.parametrize("inside", LAYERS)
def test_every_unit_has_one_layer(inside):
    units = list(chain.from_iterable(LAYERS[inside]))
    found = {unit for path in MODULES if (unit := unit_of(module_of(path), inside))}

    assert sorted(found) == sorted(units)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCES)))
def test_imports_point_down_only(path):
    importer = module_of(path)

    assert [] == [
        f"line {line}: {importer} imports {imported}"
        for line, imported in own_imports_of(path)
        if not is_allowed(importer, imported)
    ]


def test_there_are_no_import_cycles():
    graph = {module_of(path): {name for _, name in own_imports_of(path)} - {module_of(path)} for path in MODULES}

    # Raises `CycleError`, which names the cycle.
    assert len(MODULES) == len(list(TopologicalSorter(graph).static_order()))


def test_no_package_has_too_many_modules():
    sizes = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    # `cli/` has one file per command.
    del sizes[SOURCES / "cli"]

    assert {} == {str(folder): size for folder, size in sizes.items() if size > LARGEST_PACKAGE}


@pytest.mark.parametrize(
    "importer, imported, expected",
    [
        ("tracking.tracker", "records.session", True),
        ("records.session", "tracking.tracker", False),
        ("rules.history", "disk.journal", False),
        ("disk.journal", "rules.history", False),
        ("rules.session", "rules.pace", True),
        ("reading.run_reader", "checkpoints.select", False),
        ("alerts.monitor", "tracking.run_writer", False),
        ("answers.run_store", "tracking.run_writer", False),
        ("tracking.tracker", "testing.clock", False),
        ("testing.processes", "disk.lock", True),
        ("pytorch.ranks", "teacher.client.client", False),
        ("adapters.lightning", "pytorch.sampler", True),
        ("distillation.data.api_data", "teacher", True),
        ("distillation.command", "cli.app", False),
        ("cli.generate", "distillation.command", True),
        ("", "tracking.context", True),
        ("tracking.context", "", False),
        ("teacher.jobs.generation", "teacher.client.client", True),
        ("teacher.client.client", "teacher.jobs.generation", False),
        ("teacher.client.client", "teacher.shared_store.store", False),
        ("distillation.evaluation.evaluator", "distillation.recipes.recipe", False),
        ("distillation.recipes.kd", "distillation.evaluation.evaluator", True),
        ("distillation.settings.run", "distillation.data.text_data", False),
    ],
)
def test_the_table_allows_what_it_should(importer, imported, expected):
    assert expected is is_allowed(importer, imported)


@pytest.mark.parametrize("path", sorted((SOURCES / "rules").glob("*.py")), ids=lambda path: path.name)
def test_rules_touch_no_files_no_clock_and_no_torch(path):
    assert set() == {name.split(".")[0] for _, name in imports_of(path)} & FORBIDDEN_TO_RULES


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCES)))
def test_only_the_pytorch_side_imports_torch(path):
    outside = {name.split(".")[0] for _, name in imports_of(path)} & {"torch", "transformers", "safetensors"}

    assert not outside or unit_of(module_of(path), "") in TORCH_UNITS


@pytest.mark.parametrize("path", sorted((ROOT / "training").glob("*.py")), ids=lambda path: path.name)
def test_an_entry_point_has_only_a_docstring_and_imports(path):
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
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)

    assert "[]\n" == completed.stdout


def test_importing_changes_nothing(tmp_path):
    program = (
        "import logging, os, threading\n"
        "before = (dict(os.environ), os.listdir('.'), logging.root.handlers[:], threading.active_count())\n"
        "import crashproof\n"
        "after = (dict(os.environ), os.listdir('.'), logging.root.handlers[:], threading.active_count())\n"
        "print(before == after, logging.getLogger('crashproof').handlers)"
    )
    # In a folder of its own: other tests may write into this one meanwhile.
    completed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )

    assert "True []\n" == completed.stdout
