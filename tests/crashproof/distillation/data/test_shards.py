from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from crashproof.distillation.data.shards import ShardReader, pack_shard, plan_shards, rows_before_samples
from crashproof.distillation.data.text_data import TokenizedData, TopK
from crashproof.distillation.losses.divergences import IGNORED


def made_of(*lengths: int) -> TokenizedData:
    """Samples of these lengths, of each of which the first half is only read."""
    starts = [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    ids = torch.arange(starts[-1]) % 300
    labels = ids.clone()
    for start, length in zip(starts, lengths, strict=False):
        labels[start : start + length // 2] = IGNORED
    return TokenizedData(input_ids=ids, labels=labels, starts=torch.tensor(starts), pad_id=0)


def entries(num_rows: int, k: int, vocab_size: int) -> TopK:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size, (num_rows, k), generator=generator)
    ids[0, 0] = vocab_size - 1
    logprobs = -5 * torch.rand(num_rows, k, generator=generator)
    return TopK(ids=ids, logprobs=logprobs.half().float())


@pytest.fixture
def shard_of(tmp_path: Path) -> Callable[..., Path]:
    def write(samples: TokenizedData, topk: TopK, vocab_size: int) -> Path:
        path = tmp_path / "shard.safetensors"
        path.write_bytes(pack_shard(samples, topk, vocab_size=vocab_size))
        return path

    return write


def test_plans_hold_every_sample_once_and_in_order() -> None:
    data = made_of(4, 6, 2, 8, 4, 4)

    plans = plan_shards(data, 5)

    assert [0, 2, 4] == [plan.first_sample for plan in plans]
    assert [2, 2, 2] == [plan.num_samples for plan in plans]
    assert [5, 5, 4] == [plan.num_rows for plan in plans]
    assert int(data.is_predicted().sum()) == sum(plan.num_rows for plan in plans)


@pytest.mark.parametrize("shard_tokens, num_shards", [(1, 6), (14, 1), (10**9, 1)], ids=["tiny", "exact", "huge"])
def test_a_sample_is_never_split_and_the_last_shard_may_be_short(shard_tokens: int, num_shards: int) -> None:
    plans = plan_shards(made_of(4, 6, 2, 8, 4, 4), shard_tokens)

    assert num_shards == len(plans)
    assert 6 == sum(plan.num_samples for plan in plans)


def test_rows_are_counted_before_each_sample() -> None:
    assert [0, 2, 5, 6] == rows_before_samples(made_of(4, 6, 2)).tolist()


@pytest.mark.parametrize("vocab_size", [300, 65_536, 65_537, 200_000])
def test_what_is_packed_is_read_again(shard_of: Callable[..., Path], vocab_size: int) -> None:
    data, topk = made_of(4, 6, 2), entries(6, 3, vocab_size)
    data.input_ids[-1] = vocab_size - 1

    reader = ShardReader(shard_of(data, topk, vocab_size))

    assert torch.equal(topk.ids[2:5], reader.topk(2, 3).ids)
    assert torch.equal(topk.logprobs[2:5], reader.topk(2, 3).logprobs)
    assert vocab_size - 1 == reader.topk(0, 1).ids[0, 0]
    assert list(data.samples()) == list(reader.samples())


def test_the_same_content_is_packed_into_the_same_bytes() -> None:
    one, other = (pack_shard(made_of(4, 6), entries(5, 3, 90_000), vocab_size=90_000) for _ in range(2))

    assert one == other


@pytest.mark.parametrize("vocab_size, expected", [(50_000, 4.25), (150_000, 5.3)])
def test_an_entry_takes_at_most_six_bytes_with_all_that_stands_beside_it(vocab_size: int, expected: float) -> None:
    """Of samples of 128 tokens, half of which are only read."""
    data = made_of(*[128] * 100)
    num_rows = int(data.is_predicted().sum())

    num_bytes = len(pack_shard(data, entries(num_rows, 32, vocab_size), vocab_size=vocab_size))

    print(f"vocabulary of {vocab_size:,}: {num_bytes / num_rows / 32:.2f} bytes per predicted token and entry")
    assert num_bytes / num_rows / 32 < expected


def test_any_program_that_reads_safetensors_reads_a_shard(shard_of: Callable[..., Path]) -> None:
    topk = entries(5, 3, 70_000)

    tensors = safetensors.torch.load_file(shard_of(made_of(4, 6), topk, 70_000))

    ids = tensors["ids"].long() + (tensors["ids_high"].long() << 16)
    assert torch.equal(topk.ids, ids)
    assert torch.equal(topk.logprobs, tensors["logprobs"].float())
    assert {"ids", "ids_high", "is_predicted", "logprobs", "starts", "tokens", "tokens_high"} == tensors.keys()


def test_an_entry_that_the_teacher_rules_out_stays_ruled_out(shard_of: Callable[..., Path]) -> None:
    topk = entries(5, 3, 300)
    topk.logprobs[0] = torch.tensor([0.0, -1e9, -torch.inf])

    reader = ShardReader(shard_of(made_of(4, 6), topk, 300))

    assert [0.0, -torch.inf, -torch.inf] == reader.topk(0, 1).logprobs[0].tolist()
