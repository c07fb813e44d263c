from __future__ import annotations

import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashproof import MetricsSnapshot
from crashproof.records.curves import Bucket
from crashproof.rules.curves import folded, joined, merged, point_of

NAN, INF = math.nan, math.inf


def update(step: int, loss: float, **given_fields: object) -> MetricsSnapshot:
    fields = {
        "attempt": 1,
        "timestamp": 100.0 + step,
        "wall_clock_hours": step / 3600,
        "loss_components": {"kd": loss / 2},
        "learning_rate": 0.1,
        "samples_processed": step,
        "tokens_processed": step,
    } | given_fields
    return MetricsSnapshot(step=step, loss=loss, **fields)


@pytest.mark.parametrize(
    "losses, expected",
    [
        pytest.param([3.0, 1.0, 2.0], Bucket(1.0, 3.0, 2.0, 2.0, 3, 0), id="finite"),
        pytest.param([2.0], Bucket(2.0, 2.0, 2.0, 2.0, 1, 0), id="one"),
        pytest.param([1.0, NAN, 3.0], Bucket(1.0, 3.0, 2.0, 3.0, 2, 1), id="nan-among-them"),
        pytest.param([1.0, 3.0, INF], Bucket(1.0, 3.0, 2.0, None, 2, 1), id="infinite-at-the-end"),
        pytest.param([NAN, -INF], Bucket(None, None, None, None, 0, 2), id="none-finite"),
        pytest.param([1e308, 1e308], Bucket(1e308, 1e308, 1e308, 1e308, 2, 0), id="too-large-to-be-added"),
    ],
)
def test_a_bucket_keeps_the_extremes_and_counts_what_is_not_finite(losses, expected):
    buckets = folded([update(step, loss) for step, loss in enumerate(losses)])

    assert expected == buckets["loss"]


def test_each_component_is_a_series_also_where_some_updates_lack_it():
    updates = [update(1, 4.0), update(2, 2.0, loss_components={"ce": 5.0}), update(3, 8.0)]

    buckets = folded(updates)

    assert Bucket(2.0, 4.0, 3.0, 4.0, 2, 0) == buckets["loss_components.kd"]
    assert Bucket(5.0, 5.0, 5.0, 5.0, 1, 0) == buckets["loss_components.ce"]


def test_a_series_that_no_update_has_is_left_out():
    assert {"loss", "learning_rate", "loss_components.kd"} == folded([update(1, 1.0), update(2, 1.0)]).keys()


def test_a_throughput_that_is_unknown_at_first_counts_from_when_it_is_known():
    updates = [update(1, 1.0), update(2, 1.0, throughput_samples_per_sec=8.0)]

    assert Bucket(8.0, 8.0, 8.0, 8.0, 1, 0) == folded(updates)["throughput_samples_per_sec"]


FLOATS = st.lists(st.floats(width=32), min_size=1, max_size=40)


@given(st.lists(FLOATS, min_size=1, max_size=6))
def test_joining_points_is_folding_their_updates(parts):
    groups, step = [], 0
    for losses in parts:
        groups.append([update(step + place, loss) for place, loss in enumerate(losses)])
        step += len(losses)

    by_parts = joined([point_of(group) for group in groups])
    at_once = point_of([each for group in groups for each in group])

    one, other = by_parts.series["loss"], at_once.series["loss"]
    assert (one.low, one.high, one.last) == (other.low, other.high, other.last)
    assert (one.num_finite, one.num_non_finite) == (other.num_finite, other.num_non_finite)
    assert (one.mean is None) == (other.mean is None)
    assert one.mean is None or math.isclose(
        one.mean, other.mean, rel_tol=1e-6, abs_tol=1e-30 + abs(other.high) * 1e-6
    )
    assert (by_parts.first_step, by_parts.last_step) == (0, step - 1)
    assert by_parts.num_updates == step


@given(FLOATS)
def test_no_extreme_is_hidden(losses):
    bucket = folded([update(step, loss) for step, loss in enumerate(losses)])["loss"]
    finite = [loss for loss in losses if math.isfinite(loss)]

    assert (min(finite, default=None), max(finite, default=None)) == (bucket.low, bucket.high)
    assert len(losses) == bucket.num_finite + bucket.num_non_finite
    assert not finite or math.isclose(fmean(finite), bucket.mean, rel_tol=1e-6, abs_tol=1e30)


def test_merging_buckets_without_a_finite_value_has_none():
    nothing = Bucket(None, None, None, None, 0, 3)

    assert Bucket(None, None, None, None, 0, 6) == merged([nothing, nothing])
