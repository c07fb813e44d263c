"""Tell whether a path is a checkpoint.

A name is believed where it says that its number is a step. Otherwise the step is what the state names; failing that,
the updates that the optimizer has counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from crashproof.checkpoints.foreign.formats import SUFFIXES
from crashproof.checkpoints.foreign.layouts import Layout, layout_of, saved_progress
from crashproof.checkpoints.foreign.pickled_values import UnreadablePickle, read_saved_values
from crashproof.checkpoints.foreign.saved_progress import SavedProgress, progress_in
from crashproof.errors import FileUnreadable

__all__ = [
    "BY_NAME",
    "GIVEN",
    "Candidate",
    "NotUnderstood",
    "is_inside_a_checkpoint",
    "place_file",
    "place_folder",
    "read_progress",
]

BY_NAME = "its name"
GIVEN = "what was given"
_BY_OPTIMIZER = "the updates that its optimizer has counted"
_GIVE_A_STEP = "pass --step PATH=STEP"
_ONLY_WEIGHTS = "it holds weights alone"

_PLAIN = re.compile(r"(?P<word>checkpoint|ckpt|step|epoch=\d+-step)[-_=]?(?P<number>\d{1,18})(?:-v\d+)?")
"""Names that loops and frameworks give their checkpoints."""
_STEP = re.compile(r"(?:^|[-_.=+ ])(?:global_?)?(?:steps?|iter|iteration|ba)[-_=]?(\d{1,18})(?=$|[-_.])")
"""A number that the name itself calls a step, an iteration or, of Composer, a batch."""
_STEPS_BEHIND = re.compile(r"(?:^|.*[-_.])(\d{1,18})[-_]?(?:steps?|iters?)")
_EPOCH = re.compile(r"(?:^|[-_.])(?:epoch|ep)[-_=]?(\d{1,18})(?=$|[-_.])|(?:^|[-_.])(\d{1,18})[-_]?epochs?$")
_DETECTRON = re.compile(r"model_(\d{7}|final)")
_UNFINISHED = re.compile(
    r"tmp[-_]checkpoint[-_]\d+|.+\.orbax-checkpoint-tmp.*|.+-unfinished"
    r"|.+\.(?:pt|pth|ckpt|bin|safetensors|tar)\.(?:tmp|temp|part|partial|incomplete)"
)
_TARS = (".pth.tar", ".pt.tar", ".ckpt.tar")
_BY_NAME_ONLY = frozenset({".safetensors", ".npz", ".pkl", ".json"})
_OTHER_FRAMEWORKS = {
    ".h5": "Keras",
    ".hdf5": "Keras",
    ".keras": "Keras",
    ".index": "TensorFlow",
    ".msgpack": "Flax",
    ".pdparams": "PaddlePaddle",
    ".pdopt": "PaddlePaddle",
}
"""Frameworks whose files are not looked into, by the ending."""
_EXPORTS = {".nemo": "NeMo", ".onnx": "ONNX", ".gguf": "llama.cpp"}
_PARTS = (
    *("optimizer*", "scheduler*", "scaler*", "rng_state*", "random_states_*", "sampler*", "dl_state_dict*"),
    "recipe_state*",
)
"""Parts of a checkpoint's folder, which are no checkpoint by themselves."""
_PART_FOLDERS = frozenset({"recipe_state"})
_NOT_ONE = frozenset({"training_args.bin"})
_LOOKS_LIKE_ONE = re.compile(
    r"checkpoint|ckpt|model|weights|last|latest|best|final|epoch|state|snapshot", re.IGNORECASE
)
_FEW_SAVES = 100
"""Below this a lone number may count saves; a checkpoint of so few steps is rare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A file or folder that is a checkpoint, if it is intact."""

    step: int
    """Optimizer steps done."""
    path: Path
    source: str = BY_NAME
    """What says so: its name, a key in its state, its optimizer, or a person."""
    framework: str = ""
    """Whose it is; empty if it could be anybody's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotUnderstood:
    """What looks like a checkpoint and is passed over."""

    path: Path
    reason: str
    is_unreadable: bool = False
    """Whether its content cannot be read, so that nobody knows what it is."""


def place_file(path: Path) -> Candidate | NotUnderstood | None:
    """Tell what a file is; None if it does not look like a checkpoint."""
    stem, suffix = _split(path.name)
    if _UNFINISHED.fullmatch(path.name):
        return NotUnderstood(path=path, reason="it is a save that did not end, by its name")
    if suffix in _EXPORTS:
        return NotUnderstood(
            path=path, reason=f"it is an export for {_EXPORTS[suffix]}: training does not resume from it"
        )
    if suffix in _OTHER_FRAMEWORKS:
        return _of_another_framework(path, suffix)
    if suffix == ".zip" and (found := _STEPS_BEHIND.fullmatch(stem)):
        return Candidate(step=int(found[1]), path=path)
    if not suffix and _PLAIN.fullmatch(stem) and path.is_file():
        reason = (
            f"it is a file of Flax or of a loop of its own, which is not looked into; to adopt it, {_GIVE_A_STEP}"
        )
        return NotUnderstood(path=path, reason=reason)
    if suffix not in SUFFIXES or path.name in _NOT_ONE:
        return None
    if any(fnmatchcase(path.name, pattern) for pattern in _PARTS):
        return NotUnderstood(path=path, reason="it is a part of a checkpoint, and no checkpoint by itself")
    if suffix in _BY_NAME_ONLY:
        return _by_name(path, stem, suffix)
    return _by_content(path, stem)


def place_folder(path: Path) -> Candidate | NotUnderstood | None:
    """Tell what a folder is; None if it is no checkpoint, but may hold some."""
    if _UNFINISHED.fullmatch(path.name):
        return NotUnderstood(path=path, reason="it is a save that did not end, by its name")
    if path.name in _PART_FOLDERS:
        return None
    plain, layout = _PLAIN.fullmatch(path.name), layout_of(path)
    if layout is None:
        if plain is not None:
            return Candidate(step=int(plain["number"]), path=path)
        return _of_no_layout(path)
    if plain is None and any(_PLAIN.fullmatch(each.name) for each in path.iterdir() if each.is_dir()):
        # The output folder of a Trainer has a state and weights of its own.
        return None
    return _of_layout(path, layout, plain)


def is_inside_a_checkpoint(path: Path) -> bool:
    """Whether a folder is a part of a checkpoint's, such as a named adapter."""
    return path.name in _PART_FOLDERS or any(
        (path.parent / name).exists() for name in ("trainer_state.json", "random_states_0.pkl")
    )


def read_progress(path: Path) -> SavedProgress | str:
    """How far training was, as a file tells it, or why it cannot be read."""
    try:
        state = read_saved_values(path)
    except UnreadablePickle as error:
        return str(error)
    except FileUnreadable as error:
        return f"it cannot be read ({error.reason})"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    is_detectron = _DETECTRON.fullmatch(path.stem) is not None
    return progress_in(state, is_detectron=is_detectron) if isinstance(state, Mapping) else "it holds no state"


def _split(name: str) -> tuple[str, str]:
    """A name without its ending, and the ending; `.tar` counts only behind another one."""
    tar = next((each for each in _TARS if name.endswith(each)), None)
    if tar is not None:
        return name.removesuffix(tar), ".tar"
    path = Path(name)
    return (path.stem, path.suffix) if path.suffix != ".tar" or path.stem in ("checkpoint", "ckpt") else (name, "")


def _of_another_framework(path: Path, suffix: str) -> NotUnderstood | None:
    is_index = suffix == ".index"
    if is_index and not any(path.parent.glob(f"{path.stem}.data-*-of-*")):
        return None
    return NotUnderstood(
        path=path,
        reason=f"it is a file of {_OTHER_FRAMEWORKS[suffix]}, which is not looked into; to adopt it, {_GIVE_A_STEP}",
    )


def _by_name(path: Path, stem: str, suffix: str) -> Candidate | NotUnderstood | None:
    plain = _PLAIN.fullmatch(stem)
    if plain is not None:
        return Candidate(step=int(plain["number"]), path=path)
    if suffix != ".safetensors":
        return None
    steps = _STEP.findall(stem)
    if steps:
        return Candidate(step=int(steps[-1]), path=path)
    return NotUnderstood(
        path=path, reason=f"it holds weights alone, and its name no step; to adopt it, {_GIVE_A_STEP}"
    )


def _by_content(path: Path, stem: str) -> Candidate | NotUnderstood | None:
    progress, plain = read_progress(path), _PLAIN.fullmatch(stem)
    if isinstance(progress, str):
        if plain is not None:
            # It is inspected next, which says what is wrong with it.
            return Candidate(step=int(plain["number"]), path=path)
        is_likely = _LOOKS_LIKE_ONE.search(stem) is not None or path.suffix not in (".bin", ".state")
        return NotUnderstood(path=path, reason=progress, is_unreadable=True) if is_likely else None
    if problem := _no_resume(progress):
        return NotUnderstood(path=path, reason=problem)
    named = [plain["number"]] if plain is not None and plain["word"].endswith("step") else _STEP.findall(stem)
    if named:
        return Candidate(step=int(named[-1]), path=path, framework=progress.framework)
    if plain is not None:
        return _of_count(path, int(plain["number"]), progress)
    return _of_progress(path, progress) or _of_detectron(path) or _without_step(path, progress)


def _no_resume(progress: SavedProgress) -> str | None:
    """Why a framework does not resume from a state that it wrote."""
    if progress.framework == "lightning" and not progress.has_optimizer:
        return "it was saved with save_weights_only: training cannot resume from it"
    if progress.framework == "ultralytics" and not progress.has_optimizer:
        return "it is a final model without its optimizer: training cannot resume from it"
    return None


def _of_count(path: Path, number: int, progress: SavedProgress) -> Candidate | NotUnderstood:
    """Tell what the number in `checkpoint_<number>` counts: steps, epochs or saves."""
    if progress.step is not None:
        # A loop that counts from 0 names one step less or more than it saves; a plain `step` may be one of an epoch.
        is_of_epoch = progress.is_vague and progress.step < number
        is_by_name = is_of_epoch or abs(progress.step - number) <= 1
        step, source = (number, BY_NAME) if is_by_name else (progress.step, progress.key)
        return Candidate(step=step, path=path, source=source, framework=progress.framework)
    if progress.epoch is not None and abs(progress.epoch - number) <= 1:
        return _of_progress(path, progress) or _without_step(path, progress)
    return Candidate(step=number, path=path, framework=progress.framework)


def _of_progress(path: Path, progress: SavedProgress) -> Candidate | None:
    framework = progress.framework
    if progress.step is not None:
        return Candidate(step=progress.step, path=path, source=progress.key, framework=framework)
    if progress.updates is not None:
        return Candidate(step=progress.updates, path=path, source=_BY_OPTIMIZER, framework=framework)
    return None


def _of_detectron(path: Path) -> Candidate | None:
    """Detectron2's `model_0009999.pth` is named after the last iteration that is done."""
    found = _DETECTRON.fullmatch(path.stem)
    if found is None or found[1] == "final" or not (path.parent / "last_checkpoint").exists():
        return None
    return Candidate(step=int(found[1]) + 1, path=path, framework="detectron2")


def _without_step(path: Path, progress: SavedProgress) -> NotUnderstood:
    if progress.epoch is not None:
        what = f"it names its epoch ({progress.epoch}), and nothing in it its step"
    elif progress.has_optimizer:
        what = "nothing in it names its step"
    else:
        what = f"{_ONLY_WEIGHTS}, and nothing in it names its step"
    return NotUnderstood(path=path, reason=f"{what}; to adopt it, {_GIVE_A_STEP}")


def _of_no_layout(path: Path) -> NotUnderstood | None:
    """A folder that is named like a checkpoint and holds what no framework known here has written."""
    is_named = bool(_STEP.findall(path.name)) or _EPOCH.search(path.name) is not None
    files = [each for each in path.iterdir() if each.is_file() and each.suffix in SUFFIXES - {".json", ".npz"}]
    if not is_named or not files:
        return None
    return NotUnderstood(
        path=path, reason=f"it is incomplete, or of no framework that is known here; to adopt it, {_GIVE_A_STEP}"
    )


def _of_layout(path: Path, layout: Layout, plain: re.Match[str] | None) -> Candidate | NotUnderstood:
    framework = layout.framework
    if named := _STEP.findall(path.name):
        return Candidate(step=int(named[-1]), path=path, framework=framework)
    progress = _own_progress(path, layout)
    if plain is not None:
        return _of_numbered_folder(path, int(plain["number"]), layout, progress)
    if progress.step is not None or progress.updates is not None:
        found = _of_progress(path, progress)
        assert found is not None
        return Candidate(step=found.step, path=path, source=found.source, framework=framework)
    if re.fullmatch(r"\d{1,18}", path.name):
        return Candidate(step=int(path.name), path=path, framework=framework)
    epoch = _EPOCH.search(path.name)
    what = "its name gives its epoch" if epoch else f"it is of {framework}"
    return NotUnderstood(path=path, reason=f"{what}, and nothing in it names its step; to adopt it, {_GIVE_A_STEP}")


def _own_progress(path: Path, layout: Layout) -> SavedProgress:
    """What its files tell; torchtune's state lies beside its epochs, and is of the newest one."""
    progress = saved_progress(path, layout)
    epoch = _EPOCH.search(path.name)
    if layout.framework != "torchtune" or epoch is None or (path / "recipe_state.pt").exists():
        return progress
    number = int(epoch[1])
    is_newest = not (path.parent / f"epoch_{number + 1}").exists()
    is_own = is_newest if progress.epoch is None else progress.epoch == number + 1
    return progress if is_own else SavedProgress()


def _of_numbered_folder(
    path: Path, number: int, layout: Layout, progress: SavedProgress
) -> Candidate | NotUnderstood:
    by_name = Candidate(step=number, path=path, framework=layout.framework)
    if not layout.is_numbered_by_save or not path.name.startswith("checkpoint_"):
        return by_name
    found = _of_progress(path, progress)
    if found is not None:
        source = BY_NAME if found.step == number else found.source
        return Candidate(step=found.step, path=path, source=source, framework=layout.framework)
    if not _counts_saves(path, number):
        return by_name
    return NotUnderstood(
        path=path,
        reason=f"{layout.framework} numbers its saves, so that {number} need not be its step, which nothing in it "
        f"names; to adopt it, {_GIVE_A_STEP}",
    )


def _counts_saves(path: Path, number: int) -> bool:
    """Whether the number of a folder probably counts saves: in the framework's own place, in a row, or small."""
    neighbours = (path.with_name(f"checkpoint_{each}") for each in (number - 1, number + 1))
    return path.parent.name == "checkpoints" or number < _FEW_SAVES or any(each.exists() for each in neighbours)
