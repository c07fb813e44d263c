"""The only process of a run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from torch import Tensor

__all__ = ["SingleRank"]

ValueT = TypeVar("ValueT")


class SingleRank:
    """The only process of a run."""

    rank = 0
    num_ranks = 1
    is_main = True

    def __init__(self) -> None:
        self.is_stop_agreed = False
        self.is_bad_step_agreed = False

    def broadcast(self, value: ValueT, what: str) -> ValueT:
        """The value itself."""
        return value

    def all_gather(self, value: ValueT, what: str) -> list[ValueT]:
        """A list of the value."""
        return [value]

    def main_process_first(self, what: str) -> AbstractContextManager[object]:
        """A null context: there is nothing to wait for."""
        return nullcontext()

    def all_reduce(self, numbers: Tensor) -> Tensor:
        """The numbers unchanged."""
        return numbers

    def share_stop_request(self, wants_to_stop: bool, sees_bad_step: bool = False) -> None:
        """Decide at once."""
        self.is_stop_agreed, self.is_bad_step_agreed = wants_to_stop, sees_bad_step

    def collective(self, what: str) -> AbstractContextManager[object]:
        """A null context: there is no other process."""
        return nullcontext()

    def for_background_thread(self) -> SingleRank:
        """This object."""
        return self
