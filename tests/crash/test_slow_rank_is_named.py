"""A rank that is slower than the others is named, wherever it loses its time and whatever the others wait in."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from forked_ranks import ForkedRanks
from slow_rank import SECONDS

from crashproof import RunReader
from crashproof.records.events import RankTimesMeasured

SETTINGS = [
    "data.max_length=24",
    "data.on_too_long=truncate",
    "tokenizer.vocab_size=300",
    "teacher.steps=1",
    "teacher.d_model=16",
    "teacher.num_heads=2",
    "teacher.num_layers=2",
    "student.d_model=16",
    "student.num_heads=2",
    "student.num_layers=1",
    "loss.intermediate=0",
    "train.batch_size=4",
    "train.steps=6",
]


@pytest.mark.parametrize(
    "strategy, slowness",
    [
        pytest.param("ddp", "compute_slowly", marks=pytest.mark.long),
        pytest.param("ddp", "read_slowly", marks=pytest.mark.long),
        pytest.param("fsdp", "compute_slowly"),
        pytest.param("fsdp", "read_slowly", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("slow", [1, pytest.param(0, marks=pytest.mark.long)])
def test_the_journal_names_the_rank_that_is_slow(
    strategy: str, slowness: str, slow: int, ranks: ForkedRanks, tmp_path: Path
) -> None:
    arguments = [*SETTINGS, f"train.strategy={strategy}", "--output-dir", str(tmp_path)]

    ended = ranks.run(arguments, prepare=f"slow_rank:{slowness}", SLOW_RANK=str(slow))

    assert [0, 0] == ended.exit_codes, ended.said(0) + ended.said(1)
    reader = RunReader.open(tmp_path)
    (measured,) = [event for event in reader.events() if isinstance(event, RankTimesMeasured)]
    times = measured.times
    print(f"{strategy}, {slowness}, rank {slow}: {times}")
    assert [slow, 1 - slow] == [each.rank for each in times.slowest]
    # A part of it may be hidden: the next batches are made while a step computes.
    assert SECONDS / 6 < times.slowest[0].seconds
    # The other one waits for it, and that is not its own work.
    assert times.slowest[1].seconds < times.slowest[0].seconds / 1.2
    assert slow == reader.progress(now=time.time()).rank_times.slowest[0].rank
    assert (
        times.slowest[0].rank
        == json.loads((tmp_path / "progress" / "progress.json").read_text())["rank_times"]["slowest"][0]["rank"]
    )
