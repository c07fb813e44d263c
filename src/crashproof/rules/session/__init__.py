"""Apply records to a session.

Starting and recovering are the same: these functions apply one record after the other, whether it was just written or
is read back after a crash. Records of different journals may be applied in any order relative to each other, so that
each journal can be read on its own; only an answer must come after the request that it settles.
"""

from crashproof.rules.session.answers import apply_answer, apply_request
from crashproof.rules.session.events import apply_event, begin_session
from crashproof.rules.session.updates import HISTORY_LENGTH, apply_metrics, apply_updates, update_at

__all__ = [
    "HISTORY_LENGTH",
    "apply_answer",
    "apply_event",
    "apply_metrics",
    "apply_request",
    "apply_updates",
    "begin_session",
    "update_at",
]
