"""The time left, on replayed runs of many kinds.

`CRASHPROOF_MANY_RUNS=20 pytest -s tests/field/test_time_left.py` replays that many runs of each kind, and prints the
errors.
"""

from __future__ import annotations

import os
from collections import defaultdict
from statistics import median

import pytest
from timed_runs import TRACES, Trace, estimates

NUM_RUNS = int(os.environ.get("CRASHPROOF_MANY_RUNS", "4"))


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.name)
def test_the_time_left_is_right_from_a_quarter_of_the_run_on(trace: Trace):
    errors, within = defaultdict(list), []
    for seed in range(NUM_RUNS):
        for share, truth, estimate in estimates(trace, seed):
            assert estimate is not None
            errors[share].append(estimate.seconds / truth - 1.0)
            if share >= max(0.25, trace.unknowable_until):
                within.append(estimate.low_seconds <= truth <= estimate.high_seconds)
    columns = "  ".join(
        f"{share:.0%} {median(each):+6.1%} ({max(each, key=abs):+6.1%})" for share, each in errors.items()
    )
    print(f"{trace.name:52} {columns}  in range {sum(within)}/{len(within)}")

    known = [each for share in errors if share >= max(0.25, trace.unknowable_until) for each in errors[share]]
    assert max(map(abs, known)) <= trace.chance
    assert sum(within) >= 0.9 * len(within) - 1
