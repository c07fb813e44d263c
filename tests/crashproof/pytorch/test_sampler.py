import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from crashproof.pytorch.sampler import DataOrder, ResumableSampler
from crashproof.records.bad_steps import DataWindow

orders = st.builds(DataOrder, num_samples=st.integers(1, 300), seed=st.integers(0, 2**63))


@given(orders, st.integers(0, 50))
def test_an_epoch_draws_each_sample_once(order: DataOrder, epoch: int) -> None:
    drawn = order.indices(epoch * order.num_samples, order.num_samples)

    assert list(range(order.num_samples)) == sorted(drawn)


@given(orders, st.integers(0, 1000), st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_however_it_is_cut_into_batches_the_order_is_one(order: DataOrder, start: int, sizes: list[int]) -> None:
    whole = order.indices(start, sum(sizes))
    position, pieces = start, []
    for size in sizes:
        pieces += DataOrder(num_samples=order.num_samples, seed=order.seed).indices(position, size)
        position += size

    assert whole == pieces


@given(st.integers(2, 50), st.integers(0, 100))
def test_a_batch_may_be_larger_than_the_data(num_samples: int, seed: int) -> None:
    drawn = DataOrder(num_samples=num_samples, seed=seed).indices(0, 3 * num_samples + 1)

    assert {3, 4} == {drawn.count(index) for index in range(num_samples)}


def test_the_order_is_written_down_so_that_no_version_changes_it() -> None:
    order = DataOrder(num_samples=10, seed=0)

    assert [6, 0, 2, 9, 1, 7, 5, 4, 3, 8, 8, 7, 0, 2, 3, 6, 1, 4, 5, 9] == order.indices(0, 20)


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    orders = [DataOrder(num_samples=100, seed=seed).indices(0, 300) for seed in (0, 1, 2)]
    epochs = {tuple(order[start : start + 100]) for order in orders for start in (0, 100, 200)}

    assert 9 == len(epochs)


def test_every_order_of_four_samples_comes_about_equally_often() -> None:
    seen = [tuple(DataOrder(num_samples=4, seed=seed).indices(0, 4)) for seed in range(2400)]

    assert 24 == len(set(seen))
    assert all(60 <= seen.count(order) <= 140 for order in set(seen))


def test_a_large_data_set_costs_no_memory() -> None:
    order = DataOrder(num_samples=10**12, seed=5)
    drawn = order.indices(7 * 10**12 - 2, 4)

    assert all(0 <= index < 10**12 for index in drawn)
    assert 4 == len(set(drawn))


def test_complete_epochs_are_counted() -> None:
    order = DataOrder(num_samples=10, seed=0)

    assert [0, 0, 1, 2] == [order.epoch(position) for position in (0, 9, 10, 25)]


def test_no_order_without_samples() -> None:
    with pytest.raises(ValueError, match="at least one sample, got 0"):
        DataOrder(num_samples=0, seed=0)


def test_a_data_loader_goes_on_in_the_middle_of_an_epoch() -> None:
    order = DataOrder(num_samples=10, seed=3)
    sampler = ResumableSampler(order, start=14)

    batches = list(DataLoader(range(10), batch_size=4, sampler=sampler))  # type: ignore[arg-type]

    assert 6 == len(sampler)
    assert order.indices(14, 6) == [int(index) for batch in batches for index in batch]


def test_a_sampler_may_cross_epochs() -> None:
    order = DataOrder(num_samples=3, seed=3)

    assert order.indices(2, 8) == list(ResumableSampler(order, start=2, num_samples=8))


def test_what_is_left_out_is_never_drawn_and_an_epoch_ends_where_it_did() -> None:
    order = DataOrder(num_samples=10, seed=3)
    left_out = [DataWindow(2, 5), DataWindow(8, 12)]
    positions = [*range(2), *range(5, 8), *range(12, 20)]

    drawn = list(ResumableSampler(order, left_out=left_out))
    resumed = list(ResumableSampler(order, start=len(drawn), left_out=left_out))

    assert [order.indices(position, 1)[0] for position in positions] == drawn + resumed
    assert drawn[1:4] == list(ResumableSampler(order, start=1, num_samples=3, left_out=left_out))
    assert 4 == len(ResumableSampler(order, start=1, left_out=left_out))
