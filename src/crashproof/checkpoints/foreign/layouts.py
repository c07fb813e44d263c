"""The layouts of frameworks' checkpoint folders.

`LAYOUTS` is the one place that says, for each framework, what makes a folder its checkpoint, what makes it complete,
and where its step stands.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crashproof.checkpoints.foreign.formats import Torn, parse_json
from crashproof.checkpoints.foreign.pickled_values import UnreadablePickle, attributes_of, read_saved_values
from crashproof.checkpoints.foreign.saved_progress import SavedProgress, progress_in
from crashproof.errors import FileUnreadable

__all__ = ["LAYOUTS", "Layout", "Need", "check_layout", "layout_of", "saved_progress"]

_MAX_POINTER_BYTES = 4096
_MAX_RANKS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Something that must be in a folder."""

    any_of: tuple[str, ...]
    """Globs: one of them must match."""
    if_any: tuple[str, ...] = ()
    """Only where one of these matches; always if empty."""
    beside: tuple[str, ...] = ()
    """In each folder where one of these matches; in the checkpoint's own if empty."""
    problem: str
    """What is wrong where it is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How one framework lays a checkpoint out in a folder."""

    framework: str
    marks: tuple[str, ...]
    """Globs: a folder in which one of them matches is of this layout. What is written last, where that is known."""
    needs: tuple[Need, ...] = ()
    """What makes it complete."""
    ranks: tuple[str, ...] = ()
    """Patterns of names with the number of a process; the numbers that are there begin at 0 and have no gap."""
    step_files: tuple[str, ...] = ()
    """Globs of files in or beside it whose content tells the step; the first that does counts."""
    pointer: str = ""
    """A file beside it that is written when a save is complete, and names it."""
    num_ranks_key: str = ""
    """A key of the state in `step_files` that says how many processes the last of `ranks` numbers."""
    is_numbered_by_save: bool = False
    """Whether the framework may number its saves, so that the number in its name is no step."""


_WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("adapter_model.safetensors", "adapter_model.bin", "*/adapter_model.safetensors", "*/adapter_model.bin"),
    *("pytorch_model_fsdp_*", "pytorch_model_fsdp.bin", "global_step*"),
)
"""What `Trainer` resumes: a model, whole or in shards, adapters with or without a name, FSDP, DeepSpeed."""
_SHARDED = ("pytorch_model_fsdp*", "global_step*")
_FULL_STATE = ("optimizer*", "scheduler.pt", "global_step*")

LAYOUTS = (
    Layout(
        framework="transformers",
        marks=("trainer_state.json",),
        needs=(
            Need(any_of=_WEIGHTS, problem="it has no weights (model.safetensors, pytorch_model.bin or an adapter's)"),
            Need(
                beside=("adapter_config.json", "*/adapter_config.json"),
                any_of=("adapter_model.*", *_SHARDED, *(f"../{each}" for each in _SHARDED)),
                problem="an adapter has no weights (adapter_model.safetensors or .bin) beside its config",
            ),
            # A Trainer that saves the model alone writes none of these; sharded optimizers have other names.
            Need(
                if_any=("scheduler.pt",),
                any_of=("optimizer*", "global_step*"),
                problem="optimizer.pt is missing beside scheduler.pt",
            ),
            Need(
                if_any=("optimizer.pt",),
                any_of=("scheduler.pt",),
                problem="scheduler.pt is missing beside optimizer.pt",
            ),
            Need(
                if_any=_FULL_STATE,
                any_of=("rng_state.pth", "rng_state_*.pth"),
                problem="rng_state.pth is missing beside the optimizer",
            ),
            Need(
                if_any=("latest",),
                any_of=("global_step*",),
                problem="the folder of DeepSpeed that its file `latest` names is missing",
            ),
        ),
        ranks=(r"rng_state_(\d+)\.pth",),
        step_files=("trainer_state.json",),
    ),
    Layout(
        framework="deepspeed",
        marks=("*mp_rank_*_model_states.pt", "checkpoint/*mp_rank_*_model_states.pt"),
        ranks=(
            r"mp_rank_(\d+)_model_states\.pt",
            r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_00_(?:optim|model)_states\.pt",
        ),
        step_files=("*mp_rank_*_model_states.pt", "checkpoint/*mp_rank_*_model_states.pt"),
        num_ranks_key="dp_world_size",
        pointer="latest",
    ),
    Layout(
        framework="megatron",
        marks=("mp_rank_*/model_optim_rng.pt", "mp_rank_*/model_rng.pt", "common.pt"),
        needs=(
            Need(
                if_any=("common.pt",),
                any_of=("metadata.json", ".metadata", "mp_rank_*"),
                problem="its metadata.json is missing, which is written last",
            ),
        ),
        ranks=(r"mp_rank_(\d+)(?:_\d+)*",),
        step_files=("common.pt", "mp_rank_*/model_optim_rng.pt", "mp_rank_*/model_rng.pt"),
        pointer="latest_checkpointed_iteration.txt",
    ),
    Layout(
        framework="accelerate",
        marks=("random_states_0.pkl",),
        ranks=(r"random_states_(\d+)\.pkl",),
        step_files=("train_state.json", "optimizer.bin", "optimizer_0.bin", "*/mp_rank_*_model_states.pt"),
        is_numbered_by_save=True,
    ),
    Layout(
        framework="speechbrain",
        marks=("CKPT.yaml",),
        step_files=("brain.ckpt",),
    ),
    Layout(
        framework="orbax",
        marks=("_CHECKPOINT_METADATA", "orbax.checkpoint", "_METADATA", "*/_METADATA", "commit_success.txt"),
    ),
    Layout(
        framework="torchtune",
        marks=("recipe_state.pt", "../recipe_state/recipe_state.pt"),
        needs=(
            Need(
                any_of=("*.safetensors", "*.bin", "*.pt", "*.pth"),
                problem="it has no weights (model-00001-of-00001.safetensors, .bin or an adapter's)",
            ),
        ),
        step_files=("recipe_state.pt", "../recipe_state/recipe_state.pt"),
    ),
    # Last: others contain it.
    Layout(
        framework="torch.distributed.checkpoint",
        marks=(".metadata", "weights/.metadata", "checkpoint/.metadata"),
        step_files=("meta.pt", "weights/common.pt"),
    ),
)
"""In the order in which they are tried."""


def layout_of(folder: Path) -> Layout | None:
    """The layout of a folder; None if it is of none."""
    is_torchtune = re.fullmatch(r"(?:epoch|step)_\d+", folder.name) is not None
    return next(
        (
            each
            for each in LAYOUTS
            # What lies beside a folder tells whose it is only if it has the framework's own name.
            if _exists_any(folder, [mark for mark in each.marks if is_torchtune or not mark.startswith("../")])
        ),
        None,
    )


def saved_progress(folder: Path, layout: Layout) -> SavedProgress:
    """How far training was, as the files of a checkpoint tell it."""
    for pattern in layout.step_files:
        for path in _matches(folder, pattern):
            found = _progress_in_file(path)
            if found.step is not None or found.updates is not None:
                return found
    return SavedProgress()


def check_layout(folder: Path, layout: Layout) -> None:
    """Check that a folder is complete.

    Raises:
        Torn: something is missing.
    """
    for need in layout.needs:
        if not need.if_any or _exists_any(folder, need.if_any):
            places = {each.parent for pattern in need.beside for each in _matches(folder, pattern)}
            for place in sorted(places) if need.beside else [folder]:
                if not _exists_any(place, need.any_of):
                    raise Torn(need.problem)
    num_ranks = _num_ranks(folder, layout)
    for pattern in layout.ranks:
        _check_ranks(folder, pattern, num_ranks if pattern == layout.ranks[-1] else 0)
    if layout.pointer:
        _check_pointer(folder, layout.pointer)


def _num_ranks(folder: Path, layout: Layout) -> int:
    """How many processes have saved, as the state says; 0 where it does not."""
    found: object = None
    paths = [each for pattern in layout.step_files for each in _matches(folder, pattern)]
    if layout.num_ranks_key and paths:
        with suppress(FileUnreadable, OSError, UnreadablePickle):
            found = attributes_of(read_saved_values(paths[0])).get(layout.num_ranks_key)
    return found if isinstance(found, int) and found < _MAX_RANKS else 0


def _check_ranks(folder: Path, pattern: str, num_ranks: int) -> None:
    """Check that the files of all processes are there: as many as there were, or up to the highest."""
    for parent in (folder, *(each for each in folder.iterdir() if each.is_dir())):
        found = [match for each in sorted(os.listdir(parent)) if (match := re.fullmatch(pattern, each))]
        present = {int(match[1]) for match in found}
        missing = sorted(set(range(max(num_ranks, 1 + max(present)) if found else 0)) - present)
        if missing:
            start, end = found[-1].span(1)
            name = f"{found[-1].string[:start]}{str(missing[0]).zfill(end - start)}{found[-1].string[end:]}"
            raise Torn(f"{os.path.relpath(parent / name, folder)} is missing")


def _check_pointer(folder: Path, pointer: str) -> None:
    """Check that a save did not end before the framework pointed at it: it points at the newest complete one."""
    named = _number_in(_text_of(folder.parent / pointer))
    own = _number_in(folder.name)
    if named is not None and own is not None and own > named:
        raise Torn(f"{pointer} beside it names {named:,}, so this save did not end")


def _progress_in_file(path: Path) -> SavedProgress:
    try:
        if path.name == "brain.ckpt":
            return _speechbrain_progress(path)
        return progress_in(parse_json(path) if path.suffix == ".json" else read_saved_values(path))
    except (FileUnreadable, OSError, Torn, UnreadablePickle):
        return SavedProgress()


def _speechbrain_progress(path: Path) -> SavedProgress:
    """SpeechBrain writes its counters as YAML, one a line."""
    found = re.search(r"^optimizer_step:\s*(\d{1,18})\s*$", _text_of(path), re.MULTILINE)
    return SavedProgress() if found is None else SavedProgress(step=int(found[1]), key="optimizer_step")


def _exists_any(folder: Path, patterns: Iterable[str]) -> bool:
    return any(_matches(folder, pattern) for pattern in patterns)


def _matches(folder: Path, pattern: str) -> list[Path]:
    if pattern.startswith("../"):
        return _matches(folder.parent, pattern.removeprefix("../"))
    return sorted(folder.glob(pattern))


def _text_of(path: Path) -> str:
    """The beginning of a text file; empty where there is none that can be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_POINTER_BYTES)
    except OSError:
        return ""


def _number_in(text: str) -> int | None:
    found = re.fullmatch(r"\D*(\d{1,18})\s*", text)
    return None if found is None else int(found[1])
