"""The questions that are still to be asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from crashproof.teacher.jobs.job import Question
from crashproof.teacher.jobs.ray_cluster.asker import Row

__all__ = ["Feed"]


class Feed:
    """Hands out questions as they are wanted; holds only those that came back."""

    def __init__(self, questions: Iterator[Question], *, most_waiting: int) -> None:
        """While `most_waiting` questions wait to be asked again, no new ones are read."""
        self._questions = questions
        self._most_waiting = most_waiting
        self._are_all_read = False
        self._returned: deque[Row] = deque()
        self._waiting: deque[tuple[float, Row]] = deque()
        """With the time from which each may be asked again, in order."""

    @property
    def is_empty(self) -> bool:
        """Whether every question was handed out, and none came back."""
        return self._are_all_read and not self._returned and not self._waiting

    def take(self, most: int, *, now: float) -> list[Row]:
        """Hand out up to `most` questions.

        Raises:
            DataError: a line is malformed.
        """
        rows: list[Row] = []
        while len(rows) < most and (row := self._next(now)) is not None:
            rows.append(row)
        return rows

    def put_back(self, rows: Iterable[Row]) -> None:
        """Take back questions that were not asked, or whose asker is lost."""
        self._returned.extend(rows)

    def ask_later(self, row: Row, *, at: float) -> None:
        """Take back a question that is to be asked again at a time, not before those taken back earlier."""
        self._waiting.append((at, row))

    def _next(self, now: float) -> Row | None:
        if self._returned:
            return self._returned.popleft()
        if self._waiting and self._waiting[0][0] <= now:
            return self._waiting.popleft()[1]
        if self._are_all_read or len(self._waiting) >= self._most_waiting:
            return None
        question = next(self._questions, None)
        if question is None:
            self._are_all_read = True
            return None
        return Row(request=question.request, text=question.prompt.text)
