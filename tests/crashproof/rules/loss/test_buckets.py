from __future__ import annotations

import math

import pytest

from crashproof.records.session import LossBucket
from crashproof.rules.loss.buckets import add_bucket, drop_buckets, noise_and_tail


def buckets_of(losses: list[float]) -> list[LossBucket]:
    buckets: list[LossBucket] = []
    for start in range(0, len(losses), 64):
        add_bucket(buckets, losses[start : start + 64], start + 64)
    return buckets


def test_all_updates_are_in_few_buckets_the_newest_in_the_finest():
    buckets = buckets_of([1.0] * (64 * 10_000))
    sizes = [bucket.num_updates for bucket in buckets]

    assert 640_000 == sum(sizes)
    assert len(buckets) < 32 * 10
    assert sorted(sizes, reverse=True) == sizes
    assert 64 == sizes[-1]


def test_a_bucket_has_the_median_and_a_merged_one_the_mean_and_extremes_of_its_parts():
    (first, *_, last) = buckets_of([float(step // 64) for step in range(64 * 33)])

    assert (128, 0.5, 0.0, 1.0) == (first.num_updates, first.level, first.low, first.high)
    assert (64, 32.0) == (last.num_updates, last.level)


def test_losses_that_are_not_finite_are_counted_and_left_out():
    (bucket,) = buckets_of([math.nan, math.inf, *([2.0] * 62)])

    assert (64, 62, 2.0) == (bucket.num_updates, bucket.num_finite, bucket.level)


@pytest.mark.parametrize("num_buckets", [1, 40])
def test_buckets_of_nothing_finite_have_no_level(num_buckets):
    buckets = buckets_of([math.nan] * 64 * num_buckets)

    assert {(0, None)} == {(bucket.num_finite, bucket.level) for bucket in buckets}


def test_a_bucket_without_a_level_changes_no_other_when_they_are_merged():
    (first, *_) = buckets_of([math.nan] * 64 + [3.0] * 64 * 33)

    assert (128, 64, 3.0) == (first.num_updates, first.num_finite, first.level)


def test_huge_losses_are_averaged_without_overflow():
    (first, *_) = buckets_of([1e308] * 64 * 33)

    assert 1e308 == pytest.approx(first.level)


def test_going_back_drops_the_buckets_that_reach_the_step():
    buckets = buckets_of([1.0] * 64 * 3)
    drop_buckets(buckets, 128)

    assert [64] == [bucket.last_step for bucket in buckets]


def test_two_losses_have_no_noise():
    assert (0.0, 0.0) == noise_and_tail([1.0, 2.0])
