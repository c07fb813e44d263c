"""What the processes of a run ask of each other."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from torch import Tensor

__all__ = ["Ranks"]

ValueT = TypeVar("ValueT")


class Ranks(Protocol):
    """The processes of one training run."""

    rank: int
    num_ranks: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        ...

    def broadcast(self, value: ValueT, what: str) -> ValueT:
        """The value of the main process; `what` names the activity in errors.

        Raises:
            RankLost: Another process died, or did not take part within the limit.
        """
        ...

    def all_gather(self, value: ValueT, what: str) -> list[ValueT]:
        """The values of all processes in the order of the ranks; raises like `broadcast`."""
        ...

    def main_process_first(self, what: str) -> AbstractContextManager[object]:
        """A context in which the main process works for any time; the others enter it once that work is done.

        Raises:
            RankLost: In the others, if the main process sent no heartbeat within the limit.
        """
        ...

    def all_reduce(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, in place; asynchronous on a CUDA device."""
        ...

    def share_stop_request(self, wants_to_stop: bool, sees_bad_step: bool = False) -> None:
        """Tell the others once per step; the result arrives with the next call."""
        ...

    @property
    def is_bad_step_agreed(self) -> bool:
        """Whether any process saw a bad step; the same on all processes at the same step."""
        ...

    @property
    def is_stop_agreed(self) -> bool:
        """Whether any process wanted to stop; the same on all processes at the same step."""
        ...

    def collective(self, what: str) -> AbstractContextManager[object]:
        """A context for collective operations; if another process is lost, the error names it.

        Raises:
            RankLost: Another process died, or did not take part within the limit.
        """
        ...

    def for_background_thread(self) -> Ranks:
        """The same processes for a background thread: its collectives do not mix with the training's."""
        ...
