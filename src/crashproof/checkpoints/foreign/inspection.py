"""Inspect checkpoints that other code wrote.

Each is read completely and checked as closely as its formats and its framework's layout allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crashproof.checkpoints.digest import is_litter
from crashproof.checkpoints.foreign.formats import (
    SUFFIXES,
    Torn,
    check_distributed,
    check_file,
    check_index,
    named,
    parse_json,
)
from crashproof.checkpoints.foreign.layouts import check_layout, layout_of
from crashproof.checkpoints.foreign.placing import GIVEN, Candidate
from crashproof.errors import FileUnreadable

__all__ = ["Finding", "inspect"]

_KNOWN_JSON = frozenset(
    {"trainer_state.json", "adapter_config.json", "config.json", "metadata.json", "train_state.json"}
)
"""What frameworks write into a checkpoint's folder; any other may be somebody's notes."""
_NO_RESULTS = ("_runtime", "_per_second")
"""Endings of numbers in a log of evaluations that measure its speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of an inspection."""

    problem: str | None = None
    """Why it is not intact; None if no problem was found."""
    unchecked: tuple[str, ...] = ()
    """Its files whose format has no checksum; only their size is checked."""
    evaluation: dict[str, float] | None = None
    """What its own trainer measured at its step."""


def inspect(candidate: Candidate) -> Finding:
    """Read a candidate and check whether it is intact."""
    try:
        return _inspect(candidate)
    except Torn as torn:
        return Finding(problem=str(torn))
    except FileUnreadable as error:
        return Finding(problem=f"it cannot be read ({error.reason})")
    except OSError as error:
        return Finding(problem=f"it cannot be read ({error.strerror})")


def _inspect(candidate: Candidate) -> Finding:
    path = candidate.path
    before = _fingerprint(path)
    unchecked, evaluation = _check_folder(candidate) if path.is_dir() else (check_file(path), None)
    if _fingerprint(path) != before:
        raise Torn("it changed while it was read: it is still being written")
    return Finding(unchecked=unchecked, evaluation=evaluation)


def _fingerprint(path: Path) -> list[tuple[str, int, int]]:
    files = [path] if path.is_file() else _files_below(path)
    return [(str(each), (status := each.stat()).st_size, status.st_mtime_ns) for each in files]


def _files_below(folder: Path) -> list[Path]:
    return sorted(
        each for each in folder.rglob("*") if each.is_file() and not is_litter(str(each.relative_to(folder)))
    )


def _check_folder(candidate: Candidate) -> tuple[tuple[str, ...], dict[str, float] | None]:
    folder = candidate.path
    unchecked: list[str] = []
    for path in _files_below(folder):
        name = str(path.relative_to(folder))
        with named(name):
            if path.suffix in SUFFIXES and (path.suffix != ".json" or path.name in _KNOWN_JSON) and check_file(path):
                unchecked.append(name)
            if path.name.endswith(".index.json"):
                check_index(path)
            if path.name == ".metadata":
                check_distributed(path)
            if path.suffix == ".distcp" and not path.with_name(".metadata").exists():
                raise Torn("the .metadata beside it is missing, which is written last")
    _check_layouts(candidate)
    evaluation = _check_step(candidate) if (folder / "trainer_state.json").exists() else None
    return tuple(unchecked), evaluation


def _check_layouts(candidate: Candidate) -> None:
    """Check that a folder has all that its framework saves, and each part of it that has a layout of its own."""
    folder = candidate.path
    layout = layout_of(folder)
    if layout is not None:
        check_layout(folder, layout)
    elif candidate.source != GIVEN:
        raise Torn(
            "it has no trainer_state.json (transformers), no .metadata (torch.distributed.checkpoint) and no "
            "random_states_0.pkl (accelerate): the file that is written last is missing"
        )
    for part in sorted(each for each in folder.iterdir() if each.is_dir()):
        inner = layout_of(part)
        if inner is not None and inner is not layout:
            with named(part.name):
                check_layout(part, replace(inner, pointer=""))


def _check_step(candidate: Candidate) -> dict[str, float] | None:
    """Check that the state of a `Trainer` is of the checkpoint's step, and return its evaluation."""
    state = parse_json(candidate.path / "trainer_state.json")
    step = state.get("global_step") if isinstance(state, dict) else None
    if step != candidate.step and candidate.source != GIVEN:
        said = "names no global_step" if step is None else f"is of step {step}"
        raise Torn(f"its trainer_state.json {said}")
    return _evaluation(state, candidate.step) if isinstance(state, dict) else None


def _evaluation(state: Mapping[str, Any], step: int) -> dict[str, float] | None:
    history: Sequence[object] = state.get("log_history") or []
    results = {
        name: float(value)
        for entry in history
        if isinstance(entry, dict) and entry.get("step") == step
        for name, value in entry.items()
        if name.startswith("eval_") and not name.endswith(_NO_RESULTS) and isinstance(value, (int, float))
    }
    return results or None
