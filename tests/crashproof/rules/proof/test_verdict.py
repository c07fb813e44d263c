from __future__ import annotations

import pytest
from proof_runs import STEPS, control_run, life, samples_of, seen

from crashproof.rules.proof.causes import Cause
from crashproof.rules.proof.verdict import Verdict, judge_checkpoints, judge_control, judge_lives, passed_over

CONTROL = control_run()


def steps(first, last, **given):
    return [seen(step, **given) for step in range(first, last + 1)]


def judged(*lives, saves=(0, 6), ignored=frozenset()):
    return judge_lives(lives, CONTROL, saves, ignored)


def test_an_exact_resume_has_no_finding():
    assert None is judged(life(1, *steps(1, 8)), life(2, *steps(7, STEPS)))


def test_the_first_difference_is_found_with_its_step_and_resume():
    wrong = [seen(7), seen(8, loss="?"), *steps(9, STEPS)]
    finding = judged(life(1, *steps(1, 8)), life(2, *wrong))

    assert (Verdict.NOT_EXACT, 8, 1) == (finding.verdict, finding.step, finding.resume)
    assert (("loss", "loss 8", "?"),) == finding.values


def test_a_difference_before_the_first_kill_is_no_fault_of_a_resume():
    finding = judged(life(1, *steps(1, 7), seen(8, loss="?")), life(2, *steps(7, STEPS)))

    assert (Verdict.NOT_DETERMINISTIC, 8, None) == (finding.verdict, finding.step, finding.resume)


def test_batches_that_differ_are_shown():
    wrong = [seen(7, samples=samples_of(8)), *steps(8, STEPS)]
    finding = judged(life(1, *steps(1, 8)), life(2, *wrong))

    assert ("batch", " ".join(samples_of(7)), " ".join(samples_of(8))) == finding.values[0]


def test_what_one_side_did_not_show_is_not_compared():
    unshown = steps(7, STEPS, samples=None, without=["model.weight"])

    assert None is judged(life(1, *steps(1, 8)), life(2, *unshown))


def test_what_is_passed_over_is_not_compared():
    wrong = [seen(7, random__python="?", samples=("a",)), *steps(8, STEPS)]

    assert None is judged(life(1, *steps(1, 8)), life(2, *wrong), ignored=frozenset({"random.python", "batch"}))


@pytest.mark.parametrize(
    "resumed, saves, expected",
    [
        pytest.param(steps(1, STEPS), (0, 6), Cause.STARTS_FROM_ZERO, id="from-zero"),
        pytest.param(steps(1, STEPS), (0, 0), None, id="from-zero-as-nothing-was-saved"),
        pytest.param(steps(10, STEPS), (0, 6), Cause.STEPS_MISSING, id="steps-missing"),
        pytest.param(steps(7, STEPS - 1), (0, 6), Cause.LENGTH, id="too-short"),
        pytest.param([*steps(7, STEPS), seen(STEPS + 1)], (0, 6), Cause.LENGTH, id="too-long"),
    ],
)
def test_a_run_that_goes_on_elsewhere_is_found(resumed, saves, expected):
    finding = judged(life(1, *steps(1, 8)), life(2, *resumed), saves=saves)

    assert expected is (finding and finding.named.cause)


def test_a_step_that_an_earlier_start_computed_is_not_missing():
    lives = (life(1, *steps(1, 8)), life(2, *steps(5, 6)), life(3, *steps(9, STEPS)))

    assert None is judged(*lives, saves=(0, 4, 8))


def test_equal_controls_have_no_finding():
    assert None is judge_control(CONTROL, control_run())


def test_controls_that_differ_in_what_counts_are_found():
    finding = judge_control(CONTROL, life(1, *steps(1, 4), *steps(5, STEPS, loss="?")))

    assert (Verdict.NOT_DETERMINISTIC, 5, None) == (finding.verdict, finding.step, finding.resume)


def test_generators_explain_why_controls_differ():
    finding = judge_control(CONTROL, life(1, *steps(1, STEPS, loss="?", random__python="?:1:x")))

    assert (Cause.UNSEEDED, 1) == (finding.named.cause, finding.step)


def test_controls_of_several_lengths_are_found():
    finding = judge_control(CONTROL, life(1, *steps(1, 10)))

    assert (Cause.NOT_REPEATABLE, 10) == (finding.named.cause, finding.step)


def test_generators_that_differ_or_rest_are_passed_over():
    first = control_run(random__numpy="same:1:x", random__torch="first:1:x")
    second = control_run(random__numpy="same:1:x", random__torch="second:1:x")

    assert {"random.numpy", "random.torch"} == passed_over(first, second)
    assert None is judge_control(first, second)


def test_checkpoints_that_differ_are_found():
    first = {6: {"model.a": "1", "time": "1", "random.x": "1"}, 12: {"model.a": "2", "time": "2"}}
    second = {6: {"model.a": "1", "time": "5", "random.x": "1"}, 12: {"model.a": "2", "time": "6"}}
    third = {6: {"model.a": "1", "time": "8", "random.x": "3"}, 12: {"model.a": "?", "time": "9"}}
    finding = judge_checkpoints(first, second, third)

    assert (Cause.OTHER_WEIGHTS, 12, None) == (finding.named.cause, finding.step, finding.resume)
    assert (("model.a", "2", "?"),) == finding.values
    assert None is judge_checkpoints(first, second, second)
