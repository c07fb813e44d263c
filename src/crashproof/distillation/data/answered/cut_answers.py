"""Leave out ends that answers never had."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from crashproof.teacher.replies.endings import ending_of

__all__ = ["is_cut_off", "log_cut_off", "up_to_cut"]

log = logging.getLogger("crashproof")

_Span = tuple[int, int]


def is_cut_off(sample: Mapping[str, object]) -> bool:
    """Whether the `finish_reason` of a line says that its answer is not complete."""
    messages = sample.get("messages")
    ends_with_answer = not messages or (isinstance(messages, list) and messages[-1].get("role") == "assistant")
    return ends_with_answer and not ending_of(sample.get("finish_reason")).may_be_whole


def log_cut_off(samples: Iterable[Mapping[str, object]]) -> None:
    """Log how many answers are cut off, if any are."""
    num_cut = sum(map(is_cut_off, samples))
    if num_cut:
        log.warning("%d answers are cut off (finish_reason): what would follow them is not learned.", num_cut)


def up_to_cut(text: str, spans: list[_Span], answer: str | None) -> tuple[str, list[_Span]]:
    """A rendered conversation up to where its last answer was cut off, and the spans of its answers.

    Raises:
        ValueError: the answer cannot be found in its span.
    """
    *earlier, (start, end) = spans
    said = (answer or "").strip()
    place = text.rfind(said, start, end) if said else -1
    if place < 0:
        raise ValueError("its answer was cut off, and the chat template does not show where")
    stop = place + len(said)
    return text[:stop], [*earlier, (start, stop)]
