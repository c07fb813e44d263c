"""The order of one attempt's steps."""

from __future__ import annotations

import logging

from crashproof.records.metrics import Update

__all__ = ["StepOrder"]

log = logging.getLogger("crashproof")


class StepOrder:
    """The order of the steps of one attempt; says once that a step comes again, and once that the loop goes back."""

    def __init__(self) -> None:
        self.step = -1
        """The newest step; any may come next where it is -1."""
        self.samples = 0
        """Processed up to it; likewise the tokens."""
        self.tokens = 0
        self._has_warned_of_parts = False
        self._has_warned_of_going_back = False

    def expect_resume(self) -> None:
        """Any step may come next."""
        self.step = -1

    def take(self, update: Update) -> tuple[int, int]:
        """Take the next update; return the samples and tokens processed up to it."""
        before, samples, tokens = self.step, self.samples, self.tokens
        self.step, self.samples, self.tokens = update.step, update.samples_processed, update.tokens_processed
        if update.step == before:
            self._warn_of_parts(update.step)
            # A part may leave them out.
            self.samples, self.tokens = max(samples, self.samples), max(tokens, self.tokens)
        elif update.step < before:
            self._warn_of_going_back(before, update.step)
        return self.samples, self.tokens

    def _warn_of_parts(self, step: int) -> None:
        if self._has_warned_of_parts:
            return
        self._has_warned_of_parts = True
        log.warning(
            "Step %s was reported again by the same attempt. The reports of a step are merged: all components are "
            "kept, and of what both name, the loss included, the later value counts. One report per step, with all "
            "of its components, is clearer.",
            f"{step:,}",
        )

    def _warn_of_going_back(self, before: int, step: int) -> None:
        if self._has_warned_of_going_back:
            return
        self._has_warned_of_going_back = True
        log.warning(
            "Step %s was reported after step %s by the same attempt, without a resume in between. The newer reports "
            "count from step %s on; the journal keeps the older ones as superseded. If this is the number of a batch "
            "in its epoch, report the number of optimizer steps since the beginning of the run instead.",
            f"{step:,}",
            f"{before:,}",
            f"{step:,}",
        )
