import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.text_data import Batch, TokenizedData, TopK, load_source, tokenized
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.settings.data import DataConfig
from crashproof.errors import DataError
from crashproof.pytorch.sampler import DataOrder

LINES = [
    {"text": "The quick brown fox."},
    {"prompt": "Two and two is", "teacher_text": " four."},
    {"messages": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Two."}]},
]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_it(*lines: Any) -> Path:
        path = tmp_path / "data.jsonl"
        content = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"\n".join(content))
        return path

    return write_it


@pytest.fixture
def tokens_of(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., TokenizedData]:
    def tokenize(path: Path | None, max_length: int = 64, on_too_long: Any = "error") -> TokenizedData:
        config = DataConfig(path=path, max_length=max_length, on_too_long=on_too_long)
        return tokenized(load_source(config), config, tokenizer, tmp_path / "cache")

    return tokenize


def learned(data: TokenizedData, index: int, tokenizer: PreTrainedTokenizerFast) -> str:
    labels = data.batch([index]).labels[0]
    return str(tokenizer.decode(labels[labels != IGNORED]))


def test_each_kind_of_line_learns_its_own_part(
    write: Write, tokens_of: Callable[..., TokenizedData], tokenizer: PreTrainedTokenizerFast
) -> None:
    data = tokens_of(write(*LINES))

    assert 3 == len(data)
    assert "The quick brown fox.<|end|>" == learned(data, 0, tokenizer)
    assert " four.<|end|>" == learned(data, 1, tokenizer)
    assert "Two.<|end|>\n" == learned(data, 2, tokenizer)


def test_the_prompt_is_read_though_it_is_not_learned(
    write: Write, tokens_of: Callable[..., TokenizedData], tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = tokens_of(write(LINES[1])).batch([0]).input_ids[0]

    assert "Two and two is four.<|end|>" == tokenizer.decode(ids)


def test_a_long_text_becomes_several_samples_and_loses_no_token(
    write: Write, tokens_of: Callable[..., TokenizedData], tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 20
    data = tokens_of(write({"text": text}), max_length=16)

    lengths = [int(data.batch([index]).attention_mask.sum()) for index in range(len(data))]
    assert {16} == set(lengths[:-1])
    assert text + "<|end|>" == tokenizer.decode(data.input_ids)


def test_a_long_answer_is_cut_where_that_is_asked_for(write: Write, tokens_of: Callable[..., TokenizedData]) -> None:
    path = write({"prompt": "Go on:", "teacher_text": " and on" * 50})
    data = tokens_of(path, max_length=20, on_too_long="truncate")

    assert (1, 20) == tuple(data.batch([0]).input_ids.shape)


def test_padding_stands_at_the_end_and_counts_nothing(
    write: Write, tokens_of: Callable[..., TokenizedData], tokenizer: PreTrainedTokenizerFast
) -> None:
    data = tokens_of(write({"text": "ab"}, {"text": "The quick brown fox."}))

    batch = data.batch([0, 1])

    is_padding = batch.attention_mask == 0
    assert is_padding[0].any()
    assert not is_padding[1].any()
    assert {tokenizer.pad_token_id} == set(batch.input_ids[is_padding].tolist())
    assert {IGNORED} == set(batch.labels[is_padding].tolist())
    assert sorted(is_padding[0].tolist()) == is_padding[0].tolist()
    singles = sum(data.batch([index]).num_counted() for index in (0, 1))
    assert singles == batch.num_counted()


def test_the_first_token_of_a_sample_is_predicted_from_nothing(
    write: Write, tokens_of: Callable[..., TokenizedData]
) -> None:
    batch = tokens_of(write({"text": "abcdef"})).batch([0])

    assert batch.input_ids.shape[1] - 1 == batch.num_counted()


def test_tokens_are_computed_once(write: Write, tokens_of: Callable[..., TokenizedData], tmp_path: Path) -> None:
    path = write(*LINES)
    first = tokens_of(path)
    (kept,) = (tmp_path / "cache").iterdir()
    written_at = kept.stat().st_mtime_ns

    again = tokens_of(path)

    assert written_at == kept.stat().st_mtime_ns
    assert torch.equal(first.input_ids, again.input_ids)


def test_other_content_or_another_length_is_computed_anew(
    write: Write, tokens_of: Callable[..., TokenizedData], tmp_path: Path
) -> None:
    tokens_of(write(*LINES))
    tokens_of(write(*LINES), max_length=32)
    tokens_of(write(*LINES[:2]))

    assert 3 == len(list((tmp_path / "cache").iterdir()))


@pytest.mark.parametrize("num_samples", [1, 2, 3, 7])
def test_any_batch_can_be_drawn_from_any_number_of_samples(
    write: Write, tokens_of: Callable[..., TokenizedData], num_samples: int
) -> None:
    data = tokens_of(write(*({"text": f"line {number}"} for number in range(num_samples))))
    order = DataOrder(num_samples=len(data), seed=0)

    batches = [data.batch(order.indices(position, 4)) for position in range(0, 20, 4)]

    assert all(4 == len(batch.labels) and batch.num_counted() > 0 for batch in batches)


def test_blank_lines_are_passed_over(write: Write) -> None:
    path = write(b"", LINES[0], b"   ", LINES[1], b"")

    assert [2, 4] == [sample["line"] for sample in load_source(DataConfig(path=path)).samples]


def test_without_a_path_it_is_the_text_inside_python() -> None:
    source = load_source(DataConfig())

    assert source.path is None
    assert 64 == len(source.sha256)


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"text": ', "it is not valid JSON"),
        (b'{"text": "\xff\xfe"}', "it is not valid UTF-8"),
        (["text"], "it is not a JSON object"),
        ({}, 'it needs "text", or'),
        ({"txet": "a"}, 'it needs "text", or'),
        ({"text": 3}, 'it needs "text", or'),
        ({"prompt": "a"}, '"prompt" and "teacher_text" must both be present'),
        ({"prompt": "a", "teacher_text": None}, '"prompt" and "teacher_text" must both be present'),
        ({"messages": []}, '"messages" must be a non-empty list'),
        ({"messages": "hello"}, '"messages" must be a non-empty list'),
        ({"messages": [{"role": "user"}]}, 'each message needs a "role" and a "content"'),
        ({"messages": [{"role": "user", "content": "a"}]}, 'no message has the role "assistant"'),
    ],
    ids=[
        "torn",
        "no UTF-8",
        "a list",
        "empty",
        "a typo",
        "a number for text",
        "no answer",
        "a null answer",
        "no turns",
        "a text for turns",
        "a turn without content",
        "nobody answers",
    ],
)
def test_a_malformed_line_is_named_by_its_number(write: Write, line: Any, reason: str) -> None:
    path = write(LINES[0], b"", line, LINES[1])

    with pytest.raises(DataError, match=reason) as caught:
        load_source(DataConfig(path=path))

    assert (path, 3) == (caught.value.path, caught.value.line)
    assert f"{path}, line 3: " in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: it cannot be read"):
        load_source(DataConfig(path=tmp_path / "nowhere.jsonl"))


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"], ids=["no byte", "blank lines"])
def test_an_empty_file_is_an_error(write: Write, content: bytes) -> None:
    with pytest.raises(DataError, match="it contains no samples"):
        load_source(DataConfig(path=write(content)))


def test_a_file_with_nothing_to_learn_is_an_error(write: Write, tokens_of: Callable[..., TokenizedData]) -> None:
    with pytest.raises(DataError, match="no sample has a token to learn"):
        tokens_of(write({"text": ""}))


def test_an_answer_out_of_reach_is_named(write: Write, tokens_of: Callable[..., TokenizedData]) -> None:
    path = write(LINES[0], {"prompt": "long " * 50, "teacher_text": "short"})

    with pytest.raises(DataError, match=r"line 2: it has .* leaves no room for an answer.*Raise data\.max_length"):
        tokens_of(path, max_length=16)


def test_damaged_tokens_are_computed_again(
    write: Write, tokens_of: Callable[..., TokenizedData], tmp_path: Path
) -> None:
    path = write(*LINES)
    first = tokens_of(path)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:-50])

    assert torch.equal(first.input_ids, tokens_of(path).input_ids)


def test_tokens_have_one_digest_until_one_of_them_changes(
    write: Write, tokens_of: Callable[..., TokenizedData]
) -> None:
    data = tokens_of(write(*LINES))
    other_ids, other_labels = data.input_ids.clone(), data.labels.clone()
    other_ids[-1] += 1
    other_labels[-1] = IGNORED

    changed = [dataclasses.replace(data, input_ids=other_ids), dataclasses.replace(data, labels=other_labels)]

    assert tokens_of(write(*LINES)).sha256() == data.sha256()
    assert 3 == len({data.sha256(), *(each.sha256() for each in changed)})


def test_as_many_tokens_are_predicted_as_a_loss_counts(write: Write, tokens_of: Callable[..., TokenizedData]) -> None:
    data = tokens_of(write(*LINES))

    expected = [data.batch([index]).num_counted() for index in range(len(data))]

    assert expected == [sum(sample.is_predicted) for sample in data.samples()]
    assert sum(expected) == int(data.is_predicted().sum())


def test_a_part_holds_its_samples_and_no_others(write: Write, tokens_of: Callable[..., TokenizedData]) -> None:
    data = tokens_of(write(*LINES))

    part = data.part(1, 2)

    assert list(data.samples())[1:3] == list(part.samples())
    assert torch.equal(data.batch([2]).labels, part.batch([1]).labels)


def test_the_teachers_distributions_move_with_their_batch() -> None:
    tokens = torch.zeros(1, 2, dtype=torch.long)
    topk = TopK(ids=torch.zeros(1, 2, 3, dtype=torch.long), logprobs=torch.zeros(1, 2, 3))
    batch = Batch(input_ids=tokens, attention_mask=tokens, labels=tokens, topk=topk)

    moved = batch.to(torch.device("meta"))

    assert moved.topk is not None
    assert ("meta", "meta") == (moved.topk.ids.device.type, moved.topk.logprobs.device.type)
    assert None is Batch(input_ids=tokens, attention_mask=tokens, labels=tokens).to(torch.device("meta")).topk
