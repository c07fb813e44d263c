"""What an alert says."""

from __future__ import annotations

from typing import Self

import msgspec

from crashproof.records.session import AttemptRecord, TrainingSession

__all__ = ["AlertContent"]


class AlertContent(msgspec.Struct, frozen=True, kw_only=True):
    """An alert as it is sent. Webhooks and commands receive these names as JSON, so they stay."""

    kind: str
    message: str
    run: str
    session_id: str
    attempt: int | None
    step: int
    host: str | None
    time: float
    """Seconds since 1970."""
    progress_pct: float

    @classmethod
    def of(
        cls, session: TrainingSession, attempt: AttemptRecord | None, kind: str, message: str, *, run: str, now: float
    ) -> Self:
        """An alert about an attempt of a session, as of now."""
        return cls(
            kind=kind,
            message=message,
            run=run,
            session_id=session.session_id,
            attempt=attempt.attempt if attempt else None,
            step=session.steps_completed,
            host=attempt.host if attempt else None,
            time=now,
            progress_pct=min(100.0, 100.0 * session.steps_done / session.total_steps_target),
        )

    def as_line(self) -> str:
        """Kind, message, run and progress, for people."""
        place = f"{self.run} on {self.host}" if self.host else self.run
        return f"{self.kind}: {self.message} ({place}, step {self.step:,}, {self.progress_pct:.1f} %)"
