"""Training data that bring along what a teacher said of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from crashproof.digests import SHA256, hexadecimal_of
from crashproof.disk.atomic import write_atomically
from crashproof.distillation.data.captured_folder import CapturedFolder, CapturedFrom, CaptureManifest, ShardRecord
from crashproof.distillation.data.captured_logits import CapturedLogits
from crashproof.distillation.data.shards import ShardPlan, pack_shard, plan_shards
from crashproof.distillation.data.text_data import TokenizedData, TopK, load_source, tokenized
from crashproof.distillation.losses.divergences import IGNORED, next_token_targets
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.text.tokenizer import keep_tokenizer, tokenizer_hash
from crashproof.errors import ConfigError, DataError, ModelMismatch

LINES = [
    {"prompt": "What is two and two?", "teacher_text": " Two and two is four."},
    {"text": "The quick brown fox."},
    {"prompt": "", "teacher_text": "four"},
    {"prompt": "two", "teacher_text": " and two"},
]


@pytest.fixture
def read(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., TokenizedData]:
    def tokens_of(*lines: object, max_length: int = 64) -> TokenizedData:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        config = DataConfig(path=path, max_length=max_length, on_too_long="truncate")
        return tokenized(load_source(config), config, tokenizer, tmp_path / "cache")

    return tokens_of


def entry(sample: int, position: int) -> list[int]:
    """What the teacher of these tests says of the token behind a position: ids that tell where they belong."""
    return [sample, 100 + position]


def written(folder: CapturedFolder, number: int, plan: ShardPlan, tokens: TokenizedData) -> ShardRecord:
    ids = torch.tensor(
        [
            entry(sample, position)
            for sample in range(plan.first_sample, plan.first_sample + plan.num_samples)
            for position in (next_token_targets(tokens.batch([sample]).labels)[0] != IGNORED).nonzero()
        ]
    )
    topk = TopK(ids=ids, logprobs=torch.tensor([-0.5, -1.5]).expand(len(ids), 2))
    content = pack_shard(tokens.part(plan.first_sample, plan.num_samples), topk, vocab_size=270)
    path = folder.root / folder.shard_name(number)
    file = write_atomically(path, lambda file: file.write(content), algorithm=SHA256)
    return ShardRecord(
        file=path.name,
        first_sample=plan.first_sample,
        num_samples=plan.num_samples,
        num_rows=plan.num_rows,
        num_bytes=file.num_bytes,
        sha256=hexadecimal_of(file.digest),
    )


@pytest.fixture
def captured(
    read: Callable[..., TokenizedData], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> CapturedFolder:
    """Two entries of each token, in shards of at least four tokens."""
    folder = CapturedFolder(tmp_path / "logits")
    tokens = read(*LINES)
    keep_tokenizer(tokenizer, folder.tokenizer)
    plans = plan_shards(tokens, 4)
    records = [written(folder, number, plan, tokens) for number, plan in enumerate(plans)]
    captured_from = CapturedFrom(
        data_sha256="",
        tokens_sha256=tokens.sha256(),
        tokenizer_sha256=tokenizer_hash(tokenizer),
        teacher_sha256="",
        max_length=64,
        vocab_size=270,
        top_k=2,
        temperature=2.0,
        precision="float32",
        batch_size=1,
        shard_tokens=4,
    )
    folder.write_manifest(
        CaptureManifest(
            captured_from=captured_from,
            tokenizer_files_sha256=folder.tokenizer_sha256(),
            num_shards=len(plans),
            shards=records,
        )
    )
    assert len(records) > 2
    return folder


@pytest.mark.parametrize("indices", [[0], [3, 0], [2, 2, 1, 3]], ids=["one", "two shards", "one twice"])
def test_each_position_has_the_entries_of_the_token_that_it_predicts(
    captured: CapturedFolder, read: Callable[..., TokenizedData], indices: list[int]
) -> None:
    data = CapturedLogits.open(captured.root).beside(read(*LINES))

    batch = data.batch(indices)

    assert batch.topk is not None
    targets = next_token_targets(batch.labels)
    for row, sample in enumerate(indices):
        for position, target in enumerate(targets[row].tolist()):
            expected = [-1, -1] if target == IGNORED else entry(sample, position)
            assert expected == batch.topk.ids[row, position].tolist()
    kept = targets != IGNORED
    assert torch.equal(torch.tensor([-0.5, -1.5]).expand(int(kept.sum()), 2), batch.topk.logprobs[kept])
    assert {-math.inf} == set(batch.topk.logprobs[~kept].flatten().tolist())
    assert (torch.int64, torch.float32) == (batch.topk.ids.dtype, batch.topk.logprobs.dtype)


def test_the_tokens_are_those_of_the_data(captured: CapturedFolder, read: Callable[..., TokenizedData]) -> None:
    tokens = read(*LINES)

    data = CapturedLogits.open(captured.root).beside(tokens)

    assert 4 == len(data) == len(tokens)
    assert torch.equal(tokens.batch([1, 3]).labels, data.batch([1, 3]).labels)


def test_the_tokens_that_were_captured_fit_however_their_lines_are_written(
    captured: CapturedFolder, read: Callable[..., TokenizedData], tokenizer: PreTrainedTokenizerFast
) -> None:
    as_text = [*LINES[:2], {"text": "four"}, LINES[3]]

    for lines in (LINES, as_text):
        CapturedLogits.open(captured.root).require_fit(read(*lines), tokenizer, temperature=2.0)


@pytest.mark.parametrize(
    "lines, max_length, words",
    [
        (
            [LINES[0], {"text": "The quack brown fox."}],
            64,
            r"sample 2, token \d+ is \d+ \(b'.*'\) there and \d+ \(b'",
        ),
        (LINES[:3], 64, "there are 4 samples there and 3 here"),
        ([*LINES, {"text": "one more"}], 64, "there are 4 samples there and 5 here"),
        ([*LINES[:3], {"text": "two and two"}], 64, r"sample 4, token \d+ is learned here but not there"),
        (LINES, 16, r"sample 1, which has \d+ tokens there and 16 here"),
    ],
    ids=["a word", "too few", "too many", "learned", "cut"],
)
def test_other_data_are_refused_at_the_first_token_that_differs(
    captured: CapturedFolder,
    read: Callable[..., TokenizedData],
    tokenizer: PreTrainedTokenizerFast,
    lines: list[object],
    max_length: int,
    words: str,
) -> None:
    logits = CapturedLogits.open(captured.root)
    tokens = read(*lines, max_length=max_length)

    with pytest.raises(
        ModelMismatch, match=f"The logits in {captured.root} were captured from other data: .*{words}"
    ):
        logits.require_fit(tokens, tokenizer, temperature=2.0)


def test_a_loss_with_another_temperature_is_refused_with_what_to_set(
    captured: CapturedFolder, read: Callable[..., TokenizedData], tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ConfigError, match=r"loss\.temperature is 1\.0, .* at 2\.0\. Set loss\.temperature to 2\.0"):
        CapturedLogits.open(captured.root).require_fit(read(*LINES), tokenizer, temperature=1.0)


@pytest.mark.parametrize("number", [0, 2])
def test_one_flipped_bit_in_a_shard_is_refused_by_the_shards_name(
    captured: CapturedFolder, read: Callable[..., TokenizedData], number: int
) -> None:
    path = captured.root / captured.shard_name(number)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(
        DataError, match=f"{path}: its bytes differ .* Run the same `crashproof capture-logits` again"
    ):
        CapturedLogits.open(captured.root).beside(read(*LINES))


def test_a_missing_shard_is_refused_by_its_name(captured: CapturedFolder, read: Callable[..., TokenizedData]) -> None:
    path = captured.root / captured.shard_name(1)
    path.unlink()

    with pytest.raises(DataError, match=f"{path}: it is missing"):
        CapturedLogits.open(captured.root).beside(read(*LINES))


def test_a_damaged_shard_is_reported_even_if_the_data_differ(
    captured: CapturedFolder, read: Callable[..., TokenizedData], tokenizer: PreTrainedTokenizerFast
) -> None:
    path = captured.root / captured.shard_name(0)
    path.write_bytes(b"torn")

    with pytest.raises(DataError, match=f"{path}: it has 4 bytes"):
        CapturedLogits.open(captured.root).require_fit(read(LINES[1]), tokenizer, temperature=2.0)


def test_a_capture_that_is_not_complete_is_refused(captured: CapturedFolder) -> None:
    manifest = captured.read_manifest()
    assert manifest is not None
    captured.write_manifest(msgspec.structs.replace(manifest, shards=manifest.shards[:1]))

    with pytest.raises(DataError, match=rf"it is incomplete, 1 of {manifest.num_shards} shards are captured\. Run"):
        CapturedLogits.open(captured.root)


def test_a_folder_without_captured_logits_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}: it contains no captured logits"):
        CapturedLogits.open(tmp_path)


@pytest.mark.parametrize("is_there", [True, False], ids=["altered", "missing"])
def test_a_tokenizer_that_is_not_the_one_is_refused(captured: CapturedFolder, is_there: bool) -> None:
    logits = CapturedLogits.open(captured.root)
    assert captured.tokenizer == logits.tokenizer_folder()
    if is_there:
        (captured.tokenizer / "tokenizer.json").write_text("{}")
    else:
        captured.tokenizer.rename(captured.root / "elsewhere")

    with pytest.raises(DataError, match=f"{captured.tokenizer}: it is (not the tokenizer|missing)"):
        logits.tokenizer_folder()
