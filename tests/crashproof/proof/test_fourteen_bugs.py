"""A proof names each of the bugs that people write into a resume, with the step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from proved_program import BUGS, PROGRAM, Bug, with_bug

from crashproof.proof.prover import prove_command
from crashproof.proof.scratch import Scratch
from crashproof.records.proof.certificate import Certificate


def prove(program: str, tmp_path: Path, *, num_kills: int = 3) -> Certificate:
    script = tmp_path / "train.py"
    script.write_text(program)
    return prove_command(
        [sys.executable, str(script), "{output_dir}"], Scratch(tmp_path), num_kills=num_kills, say=lambda text: None
    )


def test_a_correct_program_is_certified(tmp_path):
    certificate = prove(PROGRAM, tmp_path)

    assert (None, "exact") == (certificate.problem, certificate.verdict)
    assert (1, 30, [], []) == (
        certificate.first_step,
        certificate.last_step,
        certificate.not_shown,
        certificate.passed_over,
    )
    assert ["mid_epoch", "in_a_save", "after_a_resume"] == [each.moment for each in certificate.kills]
    assert all(each.resumed_at_step is not None for each in certificate.kills)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_is_named_with_its_step(bug: Bug, tmp_path):
    certificate = prove(with_bug(bug), tmp_path)

    assert (bug.verdict, bug.cause) == (certificate.verdict, certificate.problem and certificate.problem.cause)
    problem = certificate.problem
    assert problem is not None
    assert bug.resume == problem.resume
    if bug.resume is not None:
        resumed_at = certificate.kills[bug.resume - 1].resumed_at_step
        assert resumed_at + bug.steps_after_resume - 1 == problem.step
    else:
        assert 1 == problem.step
