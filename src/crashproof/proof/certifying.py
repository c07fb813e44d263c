"""Write down what a proof has shown."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from crashproof.proof.refusals import Reason
from crashproof.records.proof.certificate import Certificate, DifferingValue, KillDone, Problem
from crashproof.rules.proof.causes import SENTENCES, Cause
from crashproof.rules.proof.observations import StepSeen
from crashproof.rules.proof.roles import Role, role_of
from crashproof.rules.proof.verdict import Finding, Verdict

__all__ = ["CertificateDraft", "problem_of_finding", "problem_of_reason"]

_MOST_VALUES = 20
_PACKAGES = ("crashproof", "torch", "numpy", "transformers", "accelerate", "lightning")
_SHOULD_BE_SHOWN = (Role.BATCH, Role.WEIGHTS, Role.OPTIMIZER)


class CertificateDraft:
    """Collects what a certificate says, in the course of the proof."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self.kills: list[KillDone] = []
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.checkpoints: dict[str, str] = {}
        self.control: Mapping[int, StepSeen] = {}
        self.passed_over: frozenset[str] = frozenset()

    def finish(self, verdict: Verdict, problem: Problem | None, output_tail: Iterable[str] = ()) -> Certificate:
        """The certificate."""
        names = {name for each in self.control.values() for name in each.values} - self.passed_over
        counts = Counter(str(role_of(name)) for name in names)
        if any(each.samples is not None for each in self.control.values()):
            counts[str(Role.BATCH)] += 1
        return Certificate(
            verdict=verdict,
            command=self._command,
            problem=problem,
            kills=self.kills,
            first_step=min(self.control, default=None),
            last_step=max(self.control, default=None),
            compared=dict(sorted(counts.items())),
            not_shown=[str(role) for role in _SHOULD_BE_SHOWN if not counts[str(role)]] if self.control else [],
            passed_over=sorted(self.passed_over),
            notes=self.notes,
            digest=_digest_of(self.control, self.passed_over) if self.control else None,
            checkpoints=self.checkpoints,
            versions=_versions(),
            seconds=self.seconds,
            made_at=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            output_tail=list(output_tail),
        )


def problem_of_finding(finding: Finding) -> Problem:
    """A finding of the comparison, in words."""
    sentence = SENTENCES[finding.named.cause]
    values = [DifferingValue(name=name, expected=old, found=new) for name, old, new in finding.values]
    return Problem(
        cause=finding.named.cause,
        sentence=sentence.says,
        component=finding.named.component,
        step=finding.step,
        resume=finding.resume,
        detail=finding.named.detail,
        to_do=sentence.do,
        values=values[:_MOST_VALUES],
        num_values=len(values),
    )


def problem_of_reason(reason: Reason | Cause, *, resume: int | None = None, detail: str = "") -> Problem:
    """What keeps a command from being proved, or from starting again, in words."""
    if isinstance(reason, Cause):
        reason = Reason(cause=reason, sentence=SENTENCES[reason].says, to_do=SENTENCES[reason].do)
    return Problem(
        cause=reason.cause,
        sentence=reason.sentence,
        component="command",
        step=None,
        resume=resume,
        detail=detail,
        to_do=reason.to_do,
        values=[],
        num_values=0,
    )


def _digest_of(control: Mapping[int, StepSeen], passed_over: frozenset[str]) -> str:
    digest = hashlib.sha256()
    for step, seen in sorted(control.items()):
        of_step = sorted((name, value) for name, value in seen.values.items() if name not in passed_over)
        digest.update(repr((step, of_step, seen.samples)).encode())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": platform.platform(), "cpus": str(os.cpu_count())}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
