from __future__ import annotations

import pytest

from crashproof.rules.agreement.verdict import Finding, Report, Verdict, as_sentence, verdict_on

SAME = Report(host="a", description={"seed": "1"})
OTHER = Report(host="b", description={"seed": "2"})
INVALID = Report(host="b", failure="train.steps is 0.")
STOPPED = Report(host="a", failure="It was asked to stop.", may_pass=True)


@pytest.mark.parametrize(
    "reports, expected",
    [
        pytest.param({0: SAME, 1: SAME}, Verdict(finding=Finding.AGREED), id="agreed"),
        pytest.param(
            {0: SAME, 1: OTHER},
            Verdict(finding=Finding.DIFFERENT, words="seed: 1 on rank 0 (a), 2 on rank 1 (b)"),
            id="different",
        ),
        pytest.param({0: SAME}, Verdict(finding=Finding.MISSING, ranks=[1], may_pass=True), id="missing"),
        pytest.param(
            {0: SAME, 1: INVALID},
            Verdict(finding=Finding.FAILED, words="train.steps is 0.", ranks=[1]),
            id="failed",
        ),
        pytest.param(
            {0: STOPPED},
            Verdict(finding=Finding.FAILED, words="It was asked to stop.", ranks=[0], may_pass=True),
            id="a-failure-decides-whoever-is-missing",
        ),
        pytest.param(
            {1: INVALID, 0: STOPPED},
            Verdict(finding=Finding.FAILED, words="It was asked to stop.", ranks=[0, 1], may_pass=True),
            id="the-first-of-two-failures",
        ),
    ],
)
def test_reports_are_judged(reports, expected):
    assert expected == verdict_on(reports, num_ranks=2)


def test_ten_differences_are_named_and_the_others_counted():
    descriptions = [{f"key{number}": str(rank) for number in range(12)} for rank in range(2)]

    sentence = as_sentence(descriptions, ["a", "a"])

    assert sentence.startswith("key0: 0 on rank 0, 1 on rank 1; key1: ")
    assert sentence.endswith("key9: 0 on rank 0, 1 on rank 1; and 2 more")
