"""Score an answer against the expected one."""

from __future__ import annotations

import re
import string
from collections import Counter

__all__ = ["answer_f1", "is_exact_answer"]

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_f1(answer: str, expected: str) -> float:
    """The F1 over words, in [0, 1]: the harmonic mean of precision and recall.

    As in SQuAD (Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", 2016): case,
    punctuation and articles do not count.
    """
    found, wanted = _words(answer), _words(expected)
    if not found or not wanted:
        return float(found == wanted)
    num_common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * num_common / (len(found) + len(wanted))


def is_exact_answer(answer: str, expected: str) -> bool:
    """Whether the words are the same, in the same order; normalised as in `answer_f1`."""
    return _words(answer) == _words(expected)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
