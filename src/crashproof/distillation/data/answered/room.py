"""Room for answers within samples."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from crashproof.data_files.record import Place
from crashproof.distillation.data.answered.samples import AnsweredSample, unanswered
from crashproof.distillation.data.lengths import LengthCensus, OnTooLong
from crashproof.errors import DataError

__all__ = ["AnswerRoom", "most_answered"]

log = logging.getLogger("crashproof")


def most_answered(parameters: Mapping[str, object]) -> int | None:
    """The most tokens that the parameters of a request allow for its answer."""
    stated = (parameters.get(name) for name in ("max_completion_tokens", "max_tokens"))
    return next((each for each in stated if isinstance(each, int)), None)


class AnswerRoom:
    """Keeps prompts with their answers within `data.max_length`, and counts what is too long."""

    def __init__(self, path: Path, *, max_length: int, on_too_long: str) -> None:
        """`on_too_long` is an `OnTooLong`; an answer is paid already, and so never an error."""
        self._path = path
        self._max_length = max_length
        self._on_too_long = on_too_long
        self._too_long: set[Place] = set()
        """Prompts whose answers turned out too long."""

    def choose(self, places: Sequence[Place], nums_before: Sequence[int], mosts: Sequence[int | None]) -> list[int]:
        """The prompts that leave room; what they may need is said before any request is paid for.

        Args:
            places: One for each prompt.
            nums_before: Their tokens before the answer.
            mosts: The most tokens that an answer may have, where that is stated.

        Raises:
            DataError: Prompts leave no room for an answer, or less than it may take; counts them.
        """
        census = LengthCensus(max_length=self._max_length, on_too_long=self._on_too_long)
        prompts = enumerate(zip(places, nums_before, strict=True))
        kept = [index for index, (place, num) in prompts if census.tokens_kept(place, num + 1, num_before=num)]
        census.require_usable(self._path)
        census.report(self._path)
        needed = [nums_before[index] + (mosts[index] or 0) + 1 for index in kept]
        self._compare([num for num in needed if num > self._max_length], num_prompts=len(places))
        return kept

    def warn_of_unlimited_answers(self) -> None:
        """Say in the log what happens to long answers where nothing limits them."""
        log.warning(
            "teacher.max_tokens is not set: answers that are longer than data.max_length (%s) allows are %s.",
            f"{self._max_length:,}",
            self._fate,
        )

    def fit(self, place: Place, answered: AnsweredSample) -> AnsweredSample:
        """A sample as long as it may be; the end of an answer is its last token, and so never follows a cut."""
        num_tokens = len(answered.sample.ids)
        if num_tokens <= self._max_length:
            return answered
        if not self._too_long:
            has = f"with its answer it has {num_tokens:,} tokens, and data.max_length is {self._max_length:,}"
            log.warning("%s Such answers are %s.", place.error(has), self._fate)
        self._too_long.add(place)
        cut = answered.first(self._max_length)
        return cut if self._on_too_long == OnTooLong.TRUNCATE else unanswered(cut.sample.ids)

    def report(self, *, num_prompts: int) -> None:
        """Count in the log the answers that were too long."""
        if self._too_long:
            log.warning(
                "%s: the answers to %s of %s prompts had too many tokens for data.max_length (%s) and were %s.",
                self._path,
                f"{len(self._too_long):,}",
                f"{num_prompts:,}",
                f"{self._max_length:,}",
                self._fate,
            )

    @property
    def _fate(self) -> str:
        return "cut" if self._on_too_long == OnTooLong.TRUNCATE else "left out"

    def _compare(self, needed: list[int], *, num_prompts: int) -> None:
        """Refuse, or report, prompts whose answers may need more tokens than there is room for."""
        if not needed:
            return
        many = f"{len(needed):,} of {num_prompts:,} prompts may need more tokens with their answers"
        problem = f"{many} (up to {max(needed):,}, by max_tokens) than data.max_length, which is {self._max_length:,}"
        if self._on_too_long == OnTooLong.ERROR:
            raise DataError(
                self._path,
                problem,
                hint=f"Set data.max_length to {max(needed):,} if the student accepts that, lower teacher.max_tokens, "
                "or set data.on_too_long to skip or truncate.",
            )
        log.warning("%s: %s. Answers that turn out too long are %s.", self._path, problem, self._fate)
