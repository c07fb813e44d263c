"""Token ids that two vocabularies share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Self

from crashproof.distillation.text.token_bytes import TokenBytes, TokenDifference

__all__ = ["SharedTokens"]

_LEAST_SHARE = 0.9
_NUM_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTokens:
    """Ids with the same meaning in the vocabularies of teacher and student, and those with another one."""

    shared: list[int]
    differences: list[TokenDifference]

    @classmethod
    def of(cls, teacher: Sequence[TokenBytes | None], student: Sequence[TokenBytes | None]) -> Self:
        """Compare two vocabularies."""
        pairs = list(enumerate(zip_longest(teacher, student)))
        return cls(
            shared=[number for number, (there, here) in pairs if there == here and there is not None],
            differences=[
                TokenDifference(token=number, there=there, here=here)
                for number, (there, here) in pairs
                if there != here
            ],
        )

    @property
    def suffices(self) -> bool:
        """Whether the vocabularies are the same but for a few tokens."""
        return len(self.shared) >= _LEAST_SHARE * (len(self.shared) + len(self.differences))

    @property
    def others_of_teacher(self) -> list[int]:
        """The teacher's ids that the student does not share."""
        return [each.token for each in self.differences if each.there is not None]

    @property
    def others_of_student(self) -> list[int]:
        """The student's ids that the teacher does not share."""
        return [each.token for each in self.differences if each.here is not None]

    def __str__(self) -> str:
        shown = "; ".join(map(str, self.differences[:_NUM_SHOWN]))
        num_more = len(self.differences) - _NUM_SHOWN
        more = f"; and {num_more:,} more" if num_more > 0 else ""
        total = len(self.shared) + len(self.differences)
        return f"{len(self.shared):,} of {total:,} token ids are shared, and {shown}{more}"
