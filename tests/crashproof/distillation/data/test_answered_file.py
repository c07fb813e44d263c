from __future__ import annotations

from dataclasses import replace

import pytest

from crashproof.distillation.data.answered.samples import AnsweredSample
from crashproof.distillation.data.text_data import Sample
from crashproof.distillation.teachers.answer_file import AnsweredFile

ONE = AnsweredSample(Sample(ids=[5, 6, 7], is_predicted=[False, True, True]), [(0, [(6, -0.5), (8, -1.0)])])
OTHER = AnsweredSample(Sample(ids=[5, 9], is_predicted=[False, True]), [(0, [(9, -0.1)])])


def digest(*samples: AnsweredSample, top_k: int = 2) -> str:
    return AnsweredFile(list(samples), top_k=top_k, pad_id=0).digest()


@pytest.mark.parametrize(
    "changed",
    [
        digest(OTHER, ONE),
        digest(ONE),
        digest(ONE, OTHER, top_k=3),
        digest(replace(ONE, entries=[(0, [(6, -0.5), (8, -1.5)])]), OTHER),
        digest(replace(ONE, entries=[(1, [(6, -0.5), (8, -1.0)])]), OTHER),
        digest(replace(ONE, sample=Sample(ids=[5, 6, 7], is_predicted=[False, False, True])), OTHER),
    ],
    ids=["order", "fewer", "entries", "log-probability", "position", "learned"],
)
def test_a_digest_tells_tokens_and_log_probabilities_apart(changed: str) -> None:
    assert digest(ONE, OTHER) == digest(ONE, OTHER)
    assert digest(ONE, OTHER) != changed
