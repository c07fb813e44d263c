from __future__ import annotations

import pytest
from proof_runs import EPOCH, STEPS, control_run, life, samples_of, seen

from crashproof.rules.proof.causes import SENTENCES, Cause
from crashproof.rules.proof.comparison import by_step, first_difference
from crashproof.rules.proof.data_stream import DataStream
from crashproof.rules.proof.naming import Evidence, name_cause, name_irregularity, name_state
from crashproof.rules.proof.roles import Role

CONTROL = control_run()


def evidence(*steps, number=2, control=CONTROL):
    known = by_step([control])
    difference = first_difference([life(number, *steps)], known, frozenset())
    assert difference is not None
    return Evidence(difference=difference, control=known, data=DataStream.of(control.steps))


def rates(first, *following):
    return [seen(first + more, learning_rate=rate) for more, rate in enumerate(following)]


UNSHOWN = {"without": ["model.weight", "optimizer.momentum", "scheduler.done", "scaler.scale", "ema.weight"]}
"""A loop that shows no state."""
OPTIMIZER = Role.OPTIMIZER
UNSHOWN_CONTROL = control_run(samples=None, **UNSHOWN)


@pytest.mark.parametrize(
    "steps, expected, component",
    [
        pytest.param(
            [seen(9, optimizer__momentum="?", model__weight="?")], Cause.OPTIMIZER_NOT_RESTORED, Role.OPTIMIZER
        ),
        pytest.param([seen(9, scaler__scale="?", optimizer__momentum="?")], Cause.SCALER_NOT_RESTORED, Role.SCALER),
        pytest.param([seen(9, ema__weight="?")], Cause.AVERAGE_FORGOTTEN, Role.AVERAGE),
        pytest.param([seen(9, model__weight="?")], Cause.OTHER_WEIGHTS, Role.WEIGHTS),
        pytest.param(
            [seen(9, model__weight="?", without=["optimizer.momentum"])], Cause.UPDATE_DIFFERS, Role.WEIGHTS
        ),
        pytest.param([seen(9, loss="?", model__weight="?")], Cause.OTHER_WEIGHTS, Role.LOSS),
        pytest.param([seen(9, loss="?", samples=None)], Cause.LOSS_ALONE, Role.LOSS),
        pytest.param([seen(9), seen(10, loss="?")], Cause.LOSS_ALONE, Role.LOSS),
        pytest.param([seen(9, loss="?", samples_processed="17")], Cause.MID_ACCUMULATION, Role.COUNTS),
        pytest.param([seen(9, loss="?", samples_processed="2")], Cause.COUNTS_NOT_RESTORED, Role.COUNTS),
        pytest.param([seen(9, samples_processed="17")], Cause.COUNTS_NOT_RESTORED, Role.COUNTS),
        pytest.param([seen(1, loss="?", samples_processed="1")], Cause.MID_ACCUMULATION, Role.COUNTS),
        pytest.param(rates(9, "rate 10", "rate 11"), Cause.SCHEDULE_STEPPED_TWICE, Role.LEARNING_RATE),
        pytest.param(rates(9, "rate 1", "rate 2", "rate 3"), Cause.SCHEDULE_BEGINS_AGAIN, Role.LEARNING_RATE),
        pytest.param(rates(9, "rate 10", "?"), Cause.HORIZON, Role.LEARNING_RATE),
        pytest.param([seen(9, learning_rate="?", optimizer__momentum="?")], Cause.OPTIMIZER_NOT_RESTORED, OPTIMIZER),
        pytest.param(
            [seen(9), seen(10, learning_rate="?", optimizer__momentum="?")], Cause.HORIZON, Role.LEARNING_RATE
        ),
        pytest.param(rates(STEPS, "?"), Cause.HORIZON, Role.LEARNING_RATE),
        pytest.param([seen(9, scheduler__done="done 10")], Cause.SCHEDULE_STEPPED_TWICE, Role.SCHEDULER),
        pytest.param([seen(9, scheduler__done="done 1")], Cause.SCHEDULE_BEGINS_AGAIN, Role.SCHEDULER),
        pytest.param([seen(STEPS, scheduler__done="?")], Cause.SCHEDULE_BEGINS_AGAIN, Role.SCHEDULER),
        pytest.param([seen(9, samples=samples_of(8))], Cause.SAMPLES_REPEATED, Role.BATCH),
        pytest.param([seen(9, samples=samples_of(10), loss="?")], Cause.SAMPLES_SKIPPED, Role.BATCH),
        pytest.param([seen(10, samples=samples_of(7))], Cause.DATA_BEGIN_AGAIN, Role.BATCH),
        pytest.param([seen(9, samples=samples_of(3))], Cause.EPOCH_ORDER, Role.BATCH),
        pytest.param([seen(10, samples=samples_of(2))], Cause.DATA_ELSEWHERE, Role.BATCH),
        pytest.param([seen(9, samples=samples_of(9)[1:])], Cause.MID_ACCUMULATION, Role.BATCH),
        pytest.param([seen(6), seen(EPOCH + 1, samples=("1", "9"))], Cause.EPOCH_ORDER, Role.BATCH),
        pytest.param([seen(9, samples=("1", "8"))], Cause.SHUFFLE_NOT_SEEDED, Role.BATCH),
        pytest.param([seen(9, samples=("1", "8"), random__python="block0:95:x")], Cause.DATA_BEGIN_AGAIN, Role.BATCH),
        pytest.param(
            [seen(9, samples=("1", "8"), random__python="block0:10:x")], Cause.RANDOM_NOT_RESTORED, Role.RANDOM
        ),
        pytest.param([seen(9, random__python="block0:92:x", loss="?")], Cause.EXTRA_DRAWS, Role.RANDOM),
        pytest.param([seen(9, random__python="block0:90:y", loss="?")], Cause.EXTRA_DRAWS, Role.RANDOM),
        pytest.param([seen(9, random__python="block0:10:x", loss="?")], Cause.RANDOM_NOT_RESTORED, Role.RANDOM),
        pytest.param([seen(9, random__python="other:90:x", loss="?")], Cause.RANDOM_NOT_RESTORED, Role.RANDOM),
    ],
)
def test_the_first_difference_names_its_cause(steps, expected, component):
    named = name_cause(evidence(*steps))

    assert (expected, component) == (named.cause, named.component)


def test_the_second_loss_tells_where_no_state_is_shown():
    steps = [seen(9, samples=None, **UNSHOWN), seen(10, samples=None, loss="?", **UNSHOWN)]

    assert Cause.UPDATE_DIFFERS is name_cause(evidence(*steps, control=UNSHOWN_CONTROL)).cause


def test_a_horizon_in_the_schedulers_state_is_named():
    control = control_run(scheduler__T_max="100")

    assert Cause.HORIZON is name_cause(evidence(seen(9, scheduler__T_max="91"), control=control)).cause


def test_the_rate_of_the_next_step_is_named_by_where_it_is_kept():
    control = control_run(optimizer__lr="0.1")
    named = name_cause(evidence(seen(9, optimizer__lr="0.2"), control=control))

    assert (Cause.HORIZON, "What differs: optimizer.lr.") == (named.cause, named.detail)


def test_other_state_is_named_as_such():
    control = control_run(queue="full")
    named = name_cause(evidence(seen(9, queue="empty"), control=control))

    assert (Cause.OTHER_STATE, Role.OTHER) == (named.cause, named.component)


def test_what_only_a_later_resume_has_is_named_so():
    named = name_cause(evidence(seen(9, samples=samples_of(8)), number=3))

    assert Cause.SECOND_RESUME is named.cause
    assert "Resume 2 is the first that differs, first in: batch." == named.detail


def test_what_any_resume_may_show_late_keeps_its_name():
    assert Cause.SCALER_NOT_RESTORED is name_cause(evidence(seen(9, scaler__scale="?"), number=3)).cause


def test_many_names_are_cut():
    names = {f"optimizer__m{place}": "?" for place in range(7)}
    control = control_run(**dict.fromkeys(names, "same"))

    assert "and 2 more" in name_cause(evidence(seen(9, **names), control=control)).detail


@pytest.mark.parametrize(
    "step, expected",
    [
        pytest.param(seen(1, samples=("1", "2"), random__python="?:1:x"), Cause.SHUFFLE_NOT_SEEDED),
        pytest.param(seen(1, random__python="?:1:x", loss="?"), Cause.UNSEEDED),
        pytest.param(seen(1, loss="?"), Cause.NOT_REPEATABLE),
    ],
)
def test_a_run_that_cannot_be_repeated_is_explained(step, expected):
    assert expected is name_irregularity(evidence(step)).cause


@pytest.mark.parametrize(
    "names, expected",
    [
        (("ema.a", "optimizer.a"), Cause.OPTIMIZER_NOT_RESTORED),
        (("scaler.scale",), Cause.SCALER_NOT_RESTORED),
        (("counters.step",), Cause.OTHER_STATE),
    ],
)
def test_checkpoints_tell_what_was_not_restored(names, expected):
    assert expected is name_state(names).cause


def test_every_cause_has_a_sentence():
    assert set(Cause) == set(SENTENCES)
    assert [] == [each for each in SENTENCES.values() if each.says.endswith(".") or not each.do.endswith(".")]
