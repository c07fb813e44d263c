"""Made-up runs for tests of what a proof decides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from crashproof.rules.proof.observations import Difference, Life, StepSeen

__all__ = ["EPOCH", "STEPS", "control_run", "difference_between", "life", "samples_of", "seen"]

STEPS, EPOCH = 12, 6
"""Steps of a run, and steps of each of its two epochs."""
_ORDERS = ([5, 2, 9, 0, 7, 11, 3, 8, 1, 10, 6, 4], [8, 4, 0, 10, 3, 6, 1, 9, 11, 5, 2, 7])


def samples_of(step: int) -> tuple[str, ...]:
    """The two samples of a step."""
    epoch, place = divmod(step - 1, EPOCH)
    return tuple(str(each) for each in _ORDERS[epoch % 2][2 * place : 2 * place + 2])


def seen(step: int, *, samples: Sequence[str] | None = (), without: Iterable[str] = (), **values: str) -> StepSeen:
    """What an exact run sees of a step, but for what is given; names are spelled with `__` for a dot."""
    usual = {
        "loss": f"loss {step}",
        "learning_rate": f"rate {step}",
        "samples_processed": str(2 * step),
        "random.python": f"block0:{10 * step}:x",
        "model.weight": f"weight {step}",
        "optimizer.momentum": f"momentum {step}",
        "scheduler.done": f"done {step}",
        "scaler.scale": f"scale {step}",
        "ema.weight": f"average {step}",
    }
    given = {name.replace("__", "."): value for name, value in values.items()}
    kept = {name: value for name, value in (usual | given).items() if name not in {*without}}
    return StepSeen(step=step, values=kept, samples=samples_of(step) if samples == () else samples)


def life(number: int, *steps: StepSeen) -> Life:
    return Life(number=number, steps=steps)


def control_run(**given: object) -> Life:
    return life(1, *(seen(step, **given) for step in range(1, STEPS + 1)))


def difference_between(expected: StepSeen, of_life: Life, *names: str) -> Difference:
    found = next(each for each in of_life.steps if each.step == expected.step)
    return Difference(life=of_life, step=expected.step, names=names, expected=expected, found=found)
