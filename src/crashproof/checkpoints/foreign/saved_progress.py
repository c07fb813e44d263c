"""Find the step in a saved state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from crashproof.checkpoints.foreign.pickled_values import attributes_of

__all__ = ["SavedProgress", "progress_in"]

_STEPS = (
    *("global_step", "global_steps", "iter_num", "num_updates", "completed_steps", "optimizer_step"),
    *("optimizer_steps", "steps_run", "train_steps", "train_step", "global_iteration", "global_iter"),
    *("current_iteration", "iteration", "iter", "n_iter", "step", "current_step", "step_num", "steps", "updates"),
)
"""Names under which loops save the number of steps, the plainest first."""
_VAGUE = frozenset({"iteration", "iter", "n_iter", "step", "current_step", "step_num", "steps", "updates"})
_EPOCHS = ("epochs_run", "epoch", "current_epoch", "epochs")
_INSIDE = (
    *("meta", "extra_state", "state", "train_state", "trainer_state", "training_state", "progress", "counters"),
    *("trainer", "info", "metadata", "run_state", "recipe_state"),
)
"""Parts of a state in which loops keep their counters."""
_MAX_STEP = 10**18


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedProgress:
    """How far training was, as a saved state tells it."""

    framework: str = ""
    """Whose state it is; empty if it could be anybody's."""
    step: int | None = None
    """Optimizer steps done; None if it names none."""
    key: str = ""
    """Where the step stands."""
    is_vague: bool = False
    """Whether the key may as well count the steps of an epoch."""
    epoch: int | None = None
    """As the state names it, counted from 0 or from 1; None if it names none."""
    updates: int | None = None
    """The updates that its optimizer has counted; None where an optimizer counts none."""
    has_optimizer: bool = False
    """Whether training can go on from it, and not only begin with its weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Framework:
    """How one framework saves a state in one file."""

    name: str
    keys: tuple[str, ...]
    """It has all of them."""
    key: str
    """Where the step stands, in words."""
    step: Callable[[Mapping[object, object]], int | None]


def _at(*path: str) -> Callable[[Mapping[object, object]], int | None]:
    def step(state: Mapping[object, object]) -> int | None:
        found: object = state
        for key in path:
            found = attributes_of(found).get(key)
        return _whole(found)

    return step


def _after_iteration(state: Mapping[object, object]) -> int | None:
    """Detectron2 names the last iteration that is done, maskrcnn-benchmark their number; both schedules count it."""
    iteration = _whole(state.get("iteration"))
    if iteration is None:
        return None
    counted = _whole(attributes_of(state.get("scheduler")).get("last_epoch"))
    return iteration if counted == iteration else iteration + 1


def _last_of_history(state: Mapping[object, object]) -> int | None:
    history = state.get("optimizer_history")
    return _at("num_updates")(attributes_of(history[-1])) if isinstance(history, list) and history else None


_FRAMEWORKS = (
    _Framework(name="lightning", keys=("pytorch-lightning_version",), key="global_step", step=_at("global_step")),
    _Framework(name="nanoGPT", keys=("iter_num", "model_args"), key="iter_num", step=_at("iter_num")),
    _Framework(name="mmengine", keys=("meta", "state_dict"), key="meta.iter", step=_at("meta", "iter")),
    _Framework(name="deepspeed", keys=("global_steps", "module"), key="global_steps", step=_at("global_steps")),
    _Framework(name="ultralytics", keys=("train_args", "updates"), key="updates", step=_at("updates")),
    _Framework(
        name="fairseq", keys=("optimizer_history",), key="optimizer_history[-1].num_updates", step=_last_of_history
    ),
)
_DETECTRON = _Framework(name="detectron2", keys=("iteration", "model"), key="iteration", step=_after_iteration)


def progress_in(state: object, *, is_detectron: bool = False) -> SavedProgress:
    """How far training was when a state was saved.

    Args:
        state: Plain values; see `read_saved_values`.
        is_detectron: The file is named as Detectron2 names its own, whose state has no mark.
    """
    root = attributes_of(state)
    known = (*_FRAMEWORKS, _DETECTRON) if is_detectron else _FRAMEWORKS
    framework = next((each for each in known if all(key in root for key in each.keys)), None)
    key, step = "", None
    if framework is not None:
        key, step = framework.key, framework.step(root)
    if step is None:
        key, step = _first(root, _STEPS)
    optimizers = list(_optimizers(root))
    return SavedProgress(
        framework="" if framework is None else framework.name,
        step=step,
        key=key,
        is_vague=framework is None and key.rpartition(".")[2] in _VAGUE,
        epoch=_first(root, _EPOCHS)[1],
        updates=max((each for each in map(_updates, optimizers) if each is not None), default=None),
        has_optimizer=bool(optimizers),
    )


def _first(root: Mapping[object, object], names: Iterable[str]) -> tuple[str, int | None]:
    """The first of some names that holds a whole number, in a state or in the parts that hold counters."""
    places = {"": root} | {f"{part}.": attributes_of(root.get(part)) for part in _INSIDE}
    for prefix, place in places.items():
        for name in names:
            number = _whole(place.get(name))
            if number is not None:
                return prefix + name, number
    return "", None


def _optimizers(root: Mapping[object, object]) -> Iterator[Mapping[object, object]]:
    """The states of optimizers in a state: those that are not empty."""
    if "param_groups" in root and "state" in root:
        yield root
        return
    for place in (root, *(attributes_of(root.get(part)) for part in _INSIDE)):
        for name, value in place.items():
            if isinstance(name, str) and ("optim" in name.lower() or name == "opt") and "history" not in name:
                yield from _optimizers_in(value)


def _optimizers_in(value: object) -> Iterator[Mapping[object, object]]:
    state = attributes_of(value)
    if "state" in state:
        yield state
        return
    inner = state.values() if state else value if isinstance(value, (list, tuple)) else ()
    yield from (found for each in inner if "state" in (found := attributes_of(each)))


def _updates(optimizer: Mapping[object, object]) -> int | None:
    """The most updates of any parameter or group, as optimizers of the Adam family count them."""
    groups = optimizer.get("param_groups")
    counted = [*attributes_of(optimizer.get("state")).values(), *(groups if isinstance(groups, list) else [])]
    steps = (_whole(attributes_of(each).get("step")) for each in counted)
    return max((each for each in steps if each is not None), default=None)


def _whole(value: object) -> int | None:
    """A count; None for anything that is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    is_count = 0 <= value <= _MAX_STEP and value == int(value)
    return int(value) if is_count else None
