"""Several ranks as threads take their parts of one order; one of them goes astray."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from thread_ranks import ThreadRanks, ranks_in_threads
from torch import nn

from crashproof.distillation.settings.train import TrainConfig
from crashproof.distillation.training.agreement.running import RunningCheck
from crashproof.distillation.training.batches import StepData
from crashproof.distillation.training.training_state import Counters
from crashproof.errors import RanksDisagree
from crashproof.pytorch.ranks import SingleRank
from crashproof.pytorch.sampler import DataOrder

TRAIN = TrainConfig(batch_size=6, gradient_accumulation=2, seed=3)
NUM_STEPS = 4

Alter = Callable[[int, int, StepData], StepData]
"""Takes rank, step and what should be taken."""


def as_it_should_be(rank: int, step: int, data: StepData) -> StepData:
    return data


def taken(rank: int, num_ranks: int, step: int, *, seed: int = 3) -> StepData:
    """What a rank takes at a step, as `StepBatches` deals it out."""
    order, size = DataOrder(num_samples=50, seed=seed), TRAIN.batch_size // num_ranks
    passes = [order.indices((step * 2 + place) * TRAIN.batch_size, TRAIN.batch_size) for place in range(2)]
    own = [index for each in passes for index in each[rank * size : (rank + 1) * size]]
    taken = [index for each in passes for index in each]
    return StepData(batches=[], counts={}, indices=own, all_indices=taken, data=[])


def run(
    alter: Alter = as_it_should_be,
    *,
    num_ranks: int = 3,
    counters: Callable[[int], Counters] = lambda rank: Counters(step=NUM_STEPS),
    train: Callable[[int], TrainConfig] = lambda rank: TRAIN,
    module: Callable[[int], nn.Module] = lambda rank: nn.Identity(),
) -> list[str]:
    """The error of each rank, or nothing."""

    def outcome(ranks: ThreadRanks) -> str:
        check = RunningCheck(ranks, train(ranks.rank), module(ranks.rank))
        try:
            for step in range(NUM_STEPS):
                check.add(alter(ranks.rank, step, taken(ranks.rank, num_ranks, step)))
            check.require_same(counters(ranks.rank))
        except RanksDisagree as error:
            return str(error)
        return ""

    torch.manual_seed(0)
    with ThreadPoolExecutor(num_ranks) as pool:
        return list(pool.map(outcome, ranks_in_threads(num_ranks)))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 6])
def test_ranks_that_take_their_parts_agree(num_ranks: int) -> None:
    assert [""] * num_ranks == run(num_ranks=num_ranks)


def test_a_rank_that_takes_the_part_of_another_is_named() -> None:
    def alter(rank: int, step: int, data: StepData) -> StepData:
        return taken(0, 3, step) if (rank, step) == (2, 1) else data

    said = run(alter)

    assert 1 == len(set(said))
    expected = "Rank 2 took samples that are not in the order of the run, in one of the steps 1 to 4"
    assert expected == said[0].partition(". ")[0]


def test_a_rank_that_takes_its_part_in_another_order_is_named() -> None:
    def alter(rank: int, step: int, data: StepData) -> StepData:
        if (rank, step) != (0, 3):
            return data
        return StepData(batches=[], counts={}, indices=data.indices[::-1], all_indices=data.all_indices, data=[])

    assert "Rank 0 took samples" in run(alter)[1]


def test_a_rank_with_another_order_is_named() -> None:
    assert "Rank 1 took samples" in run(lambda rank, step, data: taken(rank, 3, step, seed=3 + (rank == 1)))[0]


@pytest.mark.parametrize("field", ["step", "samples", "tokens", "schedule_steps"])
def test_a_rank_with_other_counters_is_named(field: str) -> None:
    said = run(counters=lambda rank: Counters(**{"step": NUM_STEPS} | ({field: 9} if rank == 2 else {})))

    assert all(each.startswith("Rank 2 had other settings or counters") for each in said)


def test_a_rank_with_other_settings_is_named() -> None:
    said = run(train=lambda rank: TRAIN if rank else TRAIN.model_copy(update={"learning_rate": 1.0}))

    assert all(each.startswith("Rank 0 had other settings or counters") for each in said)


def test_ranks_with_other_weights_are_named() -> None:
    modules = [nn.Linear(2, 2) for _ in range(3)]
    for each in modules:
        each.load_state_dict(modules[0].state_dict())
    with torch.no_grad():
        modules[1].weight.view(torch.int32)[0, 0] ^= 1

    said = run(module=lambda rank: modules[rank])

    assert ["Rank 1 came to other weights than the others, in one of the steps 1 to 4"] * 3 == [
        each.partition(". ")[0] for each in said
    ]


def test_frozen_weights_are_not_compared() -> None:
    modules = [nn.Linear(2, 2).requires_grad_(rank < 0) for rank in range(3)]

    assert [""] * 3 == run(module=lambda rank: modules[rank])


def test_a_check_is_due_after_a_hundred_steps_and_begins_anew_after_it() -> None:
    check = RunningCheck(SingleRank(), TRAIN, nn.Linear(1, 1))
    due = []
    for step in range(250):
        check.add(taken(0, 1, step))
        due.append(check.is_due)
        if check.is_due:
            check.require_same(Counters(step=step + 1))

    assert [99, 199] == [step for step, is_due in enumerate(due) if is_due]


def test_without_a_step_nobody_is_asked() -> None:
    class NeverAsked(SingleRank):
        def all_gather(self, value: object, what: str) -> list[object]:  # type: ignore[override]
            raise AssertionError("nothing has happened")

    RunningCheck(NeverAsked(), TRAIN, nn.Linear(1, 1)).require_same(Counters())
