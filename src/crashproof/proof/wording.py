"""A certificate in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from crashproof.records.proof.certificate import Certificate, Problem
from crashproof.rules.proof.verdict import Verdict

__all__ = ["headline", "paragraphs"]

_HEADLINES = {
    Verdict.EXACT: "Resumes exactly",
    Verdict.NOT_EXACT: "Does not resume exactly",
    Verdict.NOT_DETERMINISTIC: "Not deterministic: nothing can be said of its resumes",
    Verdict.NOT_PROVABLE: "Nothing can be proved of this command",
}


def headline(certificate: Certificate) -> str:
    """The verdict in a few words."""
    return _HEADLINES[Verdict(certificate.verdict)]


def paragraphs(certificate: Certificate) -> Iterator[str]:
    """What was found, what to do about it, and what else is worth knowing."""
    problem = certificate.problem
    if problem is None:
        yield _of_success(certificate)
    else:
        yield f"{_place_of(problem)}{problem.sentence}."
        if problem.detail:
            yield problem.detail
        yield problem.to_do
    if certificate.not_shown:
        shown = ", ".join(certificate.not_shown)
        yield (
            f"Not shown, so known by their effect alone: {shown}. Show them with progress.witness(model=…, "
            "optimizer=…, batch=…) after each step."
        )
    yield from certificate.notes


def _of_success(certificate: Certificate) -> str:
    num_kills = len(certificate.kills)
    times = "once" if num_kills == 1 else f"{num_kills} times"
    return (
        f"Killed {times} and started again, the command computed bit for bit what two uninterrupted runs have: "
        f"steps {certificate.first_step:,} to {certificate.last_step:,}, "
        f"{sum(certificate.compared.values()):,} values at each."
    )


def _place_of(problem: Problem) -> str:
    if problem.step is None:
        place = "" if problem.resume is None else f"After kill {problem.resume}: "
    elif problem.resume is None:
        place = f"Step {problem.step:,}: "
    else:
        place = f"Step {problem.step:,}, after resume {problem.resume}: "
    return place
