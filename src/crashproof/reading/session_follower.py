"""Follow a run's session."""

from __future__ import annotations

from crashproof.disk.run_folder import RunFolder
from crashproof.errors import NotARun
from crashproof.reading.run_state import RunState, journals_continue, read_run, read_tails
from crashproof.records.session import TrainingSession

__all__ = ["SessionFollower"]


class SessionFollower:
    """One run's session, brought up to date by each call at the cost of what is new. Not thread-safe."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._state: RunState | None = None

    def session(self) -> TrainingSession:
        """The session as of now; the next call brings the same object up to date.

        Raises:
            NotARun: no session has begun here, or its folder is gone.
            NewerFormat: a file was written by a newer version.
        """
        state, self._state = self._state, None
        if state is None or state.session is None or not journals_continue(self._folder, state.marks):
            state = read_run(self._folder)
        else:
            state = read_tails(self._folder, state.session, state.marks, read_from_snapshot=True)
        if state.session is None:
            raise NotARun(self._folder.root)
        # After an error the session may be updated in part; it is then read anew.
        self._state = state
        return state.session
