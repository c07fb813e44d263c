"""The conventional names of evaluation results.

As the frameworks' own callbacks have them: the `eval_loss` of a Hugging Face Trainer is `eval/loss` in TensorBoard
and W&B and `eval_loss` in MLflow; the `val_loss` of Lightning is `val_loss` everywhere. A result that does not say
which data it is of, such as `perplexity`, is named as `eval_perplexity` would be, and not as the training's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from crashproof.patterns import LazyPattern
from crashproof.rules.naming.trackers import digest_suffix

__all__ = ["evaluation_names"]

_REWRITTEN = LazyPattern(r"(?P<data>eval|test)_(?P<rest>.+)", re.DOTALL)
_SAYS_ITS_DATA = LazyPattern(r"(?:eval|test|val|valid|validation|dev|train)[/_].", re.DOTALL)


def evaluation_names(results: Iterable[str], *, separator: str) -> dict[str, str]:
    """The conventional name of every result of a run; no two have the same.

    Where several results have the same one, such as `loss` and `eval_loss`, it is that of the result which names its
    data, and each other one ends with a digest of its own.
    """
    taken: set[str] = set()
    names: dict[str, str] = {}
    for result in sorted(set(results), key=lambda each: (_rank(each, separator), each)):
        name = _conventional(result, separator)
        while name in taken:
            name += digest_suffix(result)
        taken.add(name)
        names[result] = name
    return names


def _rank(result: str, separator: str) -> int:
    if _conventional(result, separator) == result:
        return 0
    return 1 if _SAYS_ITS_DATA.match(result) else 2


def _conventional(result: str, separator: str) -> str:
    rewritten = _REWRITTEN.fullmatch(result)
    if rewritten is not None:
        return f"{rewritten['data']}{separator}{rewritten['rest']}"
    return result if _SAYS_ITS_DATA.match(result) else f"eval{separator}{result}"
