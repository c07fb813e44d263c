"""The other ranks, as this one knows them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch.distributed as dist
from msgspec.structs import replace

from crashproof.errors import RankFailed, RankLost
from crashproof.pytorch.exit_codes import EXIT_ERROR
from crashproof.pytorch.ranks.activities import Activities
from crashproof.pytorch.ranks.bounded_store import BoundedStore, StoreSilent
from crashproof.pytorch.ranks.identity import state_of
from crashproof.pytorch.ranks.signs_of_life import SignsOfLife
from crashproof.rules.ranks.absence import (
    Absence,
    ProcessState,
    RankIdentity,
    Sign,
    is_explained,
    is_roll_complete,
    names_of,
    reason_of,
    those_to_blame,
    who_failed,
)

__all__ = ["Peers"]

_ROLL_CALL_SECONDS = 5.0
_LEAST_SECONDS = 3.0
"""Signs of life are a second apart: after three, one that does not change is missing."""
_POLL_SECONDS = 0.25
_NETWORK_WORDS = ("gloo", "NCCL", "onnection closed by peer", "onnection reset", "imed out waiting")
_SOURCE_LINE = re.compile(r"^\[[^\]]*\]\s*")


class Peers:
    """The other ranks: what became of those that do not answer."""

    def __init__(
        self, store: BoundedStore, activities: Activities, *, rank: int, num_ranks: int, limit_seconds: float
    ) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self.limit_seconds = limit_seconds
        self.activities = activities
        self.store = store
        self.signs = SignsOfLife(store, activities, rank=rank, limit_seconds=limit_seconds)
        self.identities: Sequence[RankIdentity | None] = [None] * num_ranks
        """Of all ranks, once they have told each other."""
        self.kept: object = None
        """What must not end before this does."""
        self.on_loss: Callable[[], None] = _do_nothing
        """Called in the main thread when it has learned of a loss, before it raises."""

    @contextmanager
    def naming_losses(self, what: str) -> Iterator[None]:
        """Turn an error of the network into one that names the ranks that were lost.

        Raises:
            RankLost: Another process died, or did not take part within the limit.
            RankFailed: Another process has ended with an error that another start does not mend.
        """
        try:
            yield
        except RuntimeError as error:
            if not _is_network_error(error):
                raise
            raise self.loss(what, network=_first_sentence(error)) from error

    def loss(self, what: str, *, network: str) -> RankLost | RankFailed:
        """Call the roll, and make an error of who is missing; `network` is what the library said."""
        return self._error(what, self._roll_call(), network)

    def loss_of(self, rank: int, what: str, *, sign: Sign) -> RankLost | RankFailed:
        """The error of a rank whose newest sign is not renewed any more, or says that it has left."""
        return self._error(what, [self._look_at(Absence(rank=rank, first=sign, last=sign))], "")

    def stay_for_others(self, *, seconds: float) -> None:
        """On the first rank, after an error that another start does not mend: wait until the others know of it."""
        ends_at = time.monotonic() + seconds
        others = set(range(1, self.num_ranks))
        with suppress(StoreSilent):
            while self.rank == 0 and self.signs.has_failed and others and time.monotonic() < ends_at:
                others = {rank for rank in others if not self._has_left(rank)}
                time.sleep(_POLL_SECONDS)

    def _has_left(self, rank: int) -> bool:
        sign = self.signs.of(rank, seconds=_ROLL_CALL_SECONDS)
        return sign is not None and bool(sign.left)

    def _error(self, what: str, absences: Sequence[Absence], network: str) -> RankLost | RankFailed:
        if self.activities.is_main_thread:
            self.on_loss()
        failed = who_failed(absences)
        if failed is not None and failed.last is not None:
            return RankFailed(failed.rank, what=what, reason=f"{failed.last.left}.", exit_code=EXIT_ERROR)
        blamed = those_to_blame(absences)
        return RankLost(
            what,
            missing=[each.rank for each in blamed],
            names=names_of(blamed),
            seconds=self.limit_seconds,
            reason=reason_of(blamed, network=network),
        )

    def _roll_call(self) -> list[Absence]:
        """The ranks that have not noticed the loss themselves within some seconds."""
        begun_at = time.monotonic()
        most_seconds = max(_LEAST_SECONDS, min(_ROLL_CALL_SECONDS, self.limit_seconds))
        absences = [self._look_at(Absence(rank=rank)) for rank in range(self.num_ranks) if rank != self.rank]
        try:
            self.signs.notice_loss(seconds=_ROLL_CALL_SECONDS)
            absences = [replace(each, first=self._sign_of(each)) for each in absences]
            while True:
                time.sleep(_POLL_SECONDS)
                present = self.signs.have_noticed(seconds=_ROLL_CALL_SECONDS)
                absences = [self._look_again(each) for each in absences if each.rank not in present]
                seconds = time.monotonic() - begun_at
                if seconds > most_seconds or is_roll_complete(absences, seconds=seconds):
                    return absences
        except StoreSilent as error:
            # Who runs on this host is there; of the others nothing is known but that they cannot be reached.
            unreachable = [each for each in absences if is_explained(each) or each.state is ProcessState.UNKNOWN]
            return [replace(each, last=None, unread=str(error)) for each in unreachable]

    def _look_again(self, absence: Absence) -> Absence:
        return replace(self._look_at(absence), last=self._sign_of(absence))

    def _look_at(self, absence: Absence) -> Absence:
        """What this host's kernel says of a rank."""
        identity = self.identities[absence.rank]
        if identity is None:
            return absence
        return replace(absence, identity=identity, state=state_of(identity))

    def _sign_of(self, absence: Absence) -> Sign | None:
        return self.signs.of(absence.rank, seconds=_ROLL_CALL_SECONDS)


def _is_network_error(error: RuntimeError) -> bool:
    """Whether an error came from the network; gloo's can only be recognized by their words."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in _NETWORK_WORDS)


def _first_sentence(error: RuntimeError) -> str:
    """The first sentence of a message, without the place in the library's sources."""
    return _SOURCE_LINE.sub("", str(error).splitlines()[0]).partition(". ")[0].rstrip(".")


def _do_nothing() -> None:
    """Stand for the callback until it is set."""
