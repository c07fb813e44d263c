"""A certificate in words and as a page."""

from __future__ import annotations

import msgspec
import pytest

from crashproof.proof.page import certificate_page
from crashproof.proof.wording import headline, paragraphs
from crashproof.records.proof.certificate import Certificate, DifferingValue, KillDone, Problem

EXACT = Certificate(
    verdict="exact",
    command=["python", "train.py", "{output_dir}"],
    problem=None,
    kills=[
        KillDone(moment="mid_epoch", after_step=1200, resumed_at_step=1001),
        KillDone(moment="in_a_save", after_step=1400, resumed_at_step=None),
    ],
    first_step=1,
    last_step=2000,
    compared={"loss": 2, "weights": 1500},
    not_shown=["batch"],
    passed_over=["random.numpy"],
    notes=["It is a note."],
    digest="d" * 64,
    checkpoints={"checkpoint_2000.pt": "c" * 64},
    versions={"python": "3.11"},
    seconds={"start-1-control-1": 12.3},
    made_at="2026-01-01 00:00:00 UTC",
    output_tail=[],
)
PROBLEM = Problem(
    cause="optimizer_not_restored",
    sentence="the optimizer's state is not restored",
    component="optimizer",
    step=1001,
    resume=1,
    detail="What differs: <m>.",
    to_do="Save it.",
    values=[DifferingValue(name="m", expected="1", found="<2>")],
    num_values=7,
)
NOT_EXACT = msgspec.structs.replace(EXACT, verdict="not_exact", problem=PROBLEM, output_tail=["Traceback <x>"])


def test_a_certificate_says_what_was_done():
    first, shown, note = paragraphs(EXACT)

    assert "Resumes exactly" == headline(EXACT)
    assert (
        "Killed 2 times and started again, the command computed bit for bit what two uninterrupted runs have: "
        "steps 1 to 2,000, 1,502 values at each." == first
    )
    assert shown.startswith("Not shown, so known by their effect alone: batch.")
    assert "It is a note." == note


def test_one_kill_is_said_so():
    once = msgspec.structs.replace(EXACT, kills=EXACT.kills[:1])

    assert next(paragraphs(once)).startswith("Killed once and")


@pytest.mark.parametrize(
    "step, resume, expected",
    [
        (1001, 1, "Step 1,001, after resume 1: the optimizer's"),
        (1001, None, "Step 1,001: the optimizer's"),
        (None, 2, "After kill 2: the optimizer's"),
        (None, None, "the optimizer's"),
    ],
)
def test_a_problem_says_where_it_is(step, resume, expected):
    problem = msgspec.structs.replace(PROBLEM, step=step, resume=resume)

    assert next(paragraphs(msgspec.structs.replace(EXACT, problem=problem))).startswith(expected)


def test_a_page_shows_everything_escaped():
    page = certificate_page(NOT_EXACT)

    assert "<m>" not in page
    assert "&lt;2&gt;" in page
    assert "And 6 more." in page
    assert "Traceback &lt;x&gt;" in page
    assert "d" * 64 in page
    assert all(word in page for word in ("1,200", "1,001", "mid epoch", "SHA-256 of checkpoint_2000.pt"))


def test_a_page_of_a_command_that_never_trained_is_short():
    bare = msgspec.structs.replace(
        NOT_EXACT,
        problem=msgspec.structs.replace(PROBLEM, values=[]),
        kills=[],
        compared={},
        passed_over=[],
        digest=None,
    )

    assert "Kills" not in certificate_page(bare)
