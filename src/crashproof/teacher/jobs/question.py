"""The questions of a job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from crashproof.rules.requests import TeacherRequest
from crashproof.teacher.jobs.prompts import Prompt

__all__ = ["Question", "groups_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One answer that a job wants."""

    prompt: Prompt
    sample: int
    request: TeacherRequest

    @property
    def key(self) -> str:
        """The key under which its answer is stored."""
        return self.request.key


def groups_of(questions: Iterator[Question], most: int) -> Iterator[list[Question]]:
    """Yield the questions in lists of at most so many, one list at a time."""
    while some := list(islice(questions, most)):
        yield some
