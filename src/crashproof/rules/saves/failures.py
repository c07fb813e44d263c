"""Judge the failed saves of a run."""

from __future__ import annotations

from crashproof.records.session import FailedSaves, TrainingSession

__all__ = ["are_failing", "failed_in_words", "is_last_chance", "retry_pause_seconds", "words_on_session"]

_FAILING_FROM = 2
"""One failed save may be a passing trouble; the next one tells."""
_LONGEST_PAUSE_SECONDS = 30.0


def are_failing(failed: FailedSaves) -> bool:
    """Whether so many saves in a row have failed that somebody should look."""
    return failed.in_a_row >= _FAILING_FROM


def is_last_chance(num_failed: int, most: int | None) -> bool:
    """Whether the next save has to succeed, as `most` in a row have failed already; None is any number."""
    return most is not None and num_failed >= most


def retry_pause_seconds(num_tries: int) -> float:
    """How long to wait before a save is tried again that has failed some times: longer each time, up to a limit."""
    return float(min(_LONGEST_PAUSE_SECONDS, 2.0 ** min(num_tries - 1, 10)))


def failed_in_words(failed: FailedSaves, *, done: int, saved: int | None) -> str:
    """How many saves have failed, why, and what is at stake; empty if the newest save succeeded.

    For example `3 saves in a row have failed, the newest at step 4,200: The disk is full …; the newest checkpoint is
    4,000 steps old`. `done` is the newest step, and `saved` the newest one with a checkpoint.
    """
    if not failed.in_a_row:
        return ""
    how_many = "The newest save" if failed.in_a_row == 1 else f"{failed.in_a_row:,} saves in a row"
    verb = "has" if failed.in_a_row == 1 else "have"
    where = ("at" if failed.in_a_row == 1 else "the newest at") + f" step {failed.step or 0:,}"
    reason = (failed.error or "").rstrip(".")
    return f"{how_many} {verb} failed, {where}: {reason}; {_at_stake(done=done, saved=saved)}"


def words_on_session(session: TrainingSession) -> str:
    """The same of a session, as of now."""
    return failed_in_words(session.failed_saves, done=session.steps_completed, saved=session.last_checkpoint_step)


def _at_stake(*, done: int, saved: int | None) -> str:
    """What would be lost if the run ended now, such as `the newest checkpoint is 200 steps old`."""
    if saved is None:
        return f"there is no checkpoint yet, and {done:,} steps would be lost"
    return f"the newest checkpoint is {max(0, done - saved):,} steps old"
