"""Capturing a teacher's distributions, and what becomes of a folder that is taken up again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from crashproof.checkpoints.digest import digest_of
from crashproof.disk.lock import WriterLock
from crashproof.distillation.data.captured_folder import CapturedFolder, CaptureManifest
from crashproof.distillation.data.shards import ShardReader
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.models.causal_lm import load_model
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.distillation.training.capture import CaptureSettings, capture_logits, largest_entries
from crashproof.errors import ConfigError, ModelMismatch, NewerFormat, RunInUse
from crashproof.pytorch.interrupts import Interrupts, StopRequested
from crashproof.records.lines.codec import encode

SMALL = [
    "data.max_length=16",
    "data.on_too_long=truncate",
    "tokenizer.vocab_size=262",
    "teacher.steps=1",
    "teacher.d_model=8",
    "teacher.num_heads=2",
    "teacher.num_layers=1",
    "train.device=cpu",
]

Capture = Callable[..., CaptureManifest]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    lines = [{"prompt": f"{number}:", "teacher_text": " and two is four" * (number % 3 + 1)} for number in range(8)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def capture(data: Path, tmp_path: Path) -> Capture:
    """Capture into a folder of this test, by default in three shards."""

    def run(*overrides: str, out: Path = tmp_path / "logits", **settings: Any) -> CaptureManifest:
        config = load_config(KdConfig, [], [f"data.path={data}", *SMALL, *overrides])
        usual = {"top_k": 4, "temperature": 2.0, "shard_tokens": 28, "batch_size": 2}
        return capture_logits(config, CaptureSettings(**(usual | settings)), out, interrupts=Interrupts())

    return run


@pytest.fixture
def folder(capture: Capture, tmp_path: Path) -> CapturedFolder:
    """A whole one."""
    capture()
    return CapturedFolder(tmp_path / "logits")


def content_of(folder: CapturedFolder) -> dict[str, str]:
    """The digest of each file that a capture leaves, without the lock, which names a process."""
    files = digest_of(folder.root).files
    assert files is not None
    return {name: file.digest for name, file in files.items() if name != "cache/writer.lock"}


def test_every_predicted_token_has_the_teachers_largest_entries(folder: CapturedFolder) -> None:
    manifest = folder.read_manifest()
    assert manifest is not None
    teacher = load_model(next(folder.cache.glob("teacher-*")))

    for shard in manifest.shards:
        reader, row = ShardReader(folder.root / shard.file), 0
        for sample in reader.samples():
            with torch.no_grad():
                logits = teacher(input_ids=torch.tensor([sample.ids])).logits[0]
            expected = functional.log_softmax(logits / 2.0, dim=-1).topk(4, dim=-1)
            predicting = torch.tensor(sample.is_predicted[1:]).nonzero().squeeze(-1)
            found = reader.topk(row, len(predicting))
            torch.testing.assert_close(found.logprobs, expected.values[predicting], rtol=2e-3, atol=2e-3)
            assert (found.ids == expected.indices[predicting]).float().mean() > 0.9
            row += len(predicting)
        assert shard.num_rows == row
    assert (3, 8) == (manifest.num_shards, sum(shard.num_samples for shard in manifest.shards))


def test_the_same_command_again_changes_nothing(folder: CapturedFolder, capture: Capture) -> None:
    before = content_of(folder)

    capture()

    assert before == content_of(folder)


@pytest.mark.parametrize("num_shards", [0, 1, 2])
def test_shards_that_are_missing_come_out_as_they_were(
    folder: CapturedFolder, capture: Capture, num_shards: int
) -> None:
    before = content_of(folder)
    manifest = folder.read_manifest()
    assert manifest is not None
    # As a kill leaves it between the shard's own write and the manifest's.
    folder.write_manifest(CaptureManifest(**{**_fields(manifest), "shards": manifest.shards[:num_shards]}))

    capture()

    assert before == content_of(folder)


def _fields(manifest: CaptureManifest) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in manifest.__struct_fields__}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_damaged_shard_is_set_aside_and_captured_again(
    folder: CapturedFolder, capture: Capture, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    before = content_of(folder)
    path = folder.root / folder.shard_name(number)
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)

    capture()

    aside = folder.set_aside / path.name
    assert f"{path}: its bytes differ from those that were captured. It is captured again" in caplog.text
    assert bytes(content) == aside.read_bytes()
    aside.unlink()
    assert before == content_of(folder)


def test_a_shard_that_is_gone_is_captured_again(folder: CapturedFolder, capture: Capture) -> None:
    before = content_of(folder)
    (folder.root / folder.shard_name(1)).unlink()

    capture()

    assert before == content_of(folder)


def test_a_damaged_manifest_is_set_aside_and_written_again_from_the_same_shards(
    folder: CapturedFolder, capture: Capture
) -> None:
    before = content_of(folder)
    folder.manifest.write_bytes(folder.manifest.read_bytes()[:-9])

    capture()

    (folder.set_aside / "manifest.json").unlink()
    assert before == content_of(folder)


def test_a_file_that_only_has_a_shards_name_is_set_aside(
    folder: CapturedFolder, capture: Capture, tmp_path: Path
) -> None:
    before = content_of(folder)
    folder.manifest.unlink()
    path = folder.root / folder.shard_name(2)
    path.write_bytes(b"somebody else's")

    capture()

    assert b"somebody else's" == (folder.set_aside / path.name).read_bytes()
    (folder.set_aside / path.name).unlink()
    assert before == content_of(folder)


def test_a_damaged_tokenizer_is_set_aside_and_kept_again(folder: CapturedFolder, capture: Capture) -> None:
    before = content_of(folder)
    (folder.tokenizer / "tokenizer.json").write_text("{}")

    capture()

    assert "{}" == (folder.set_aside / "tokenizer" / "tokenizer.json").read_text()
    shutil.rmtree(folder.set_aside)
    assert before == content_of(folder)


@pytest.mark.parametrize(
    "overrides, settings, words",
    [
        ([], {"top_k": 8}, "top_k: 4 → 8"),
        ([], {"temperature": 1.0, "batch_size": 3}, "temperature: 2.0 → 1.0; batch_size: 2 → 3"),
        (["data.max_length=12"], {}, "max_length: 16 → 12"),
        (["tokenizer.vocab_size=265"], {}, "tokenizer_sha256: .*; vocab_size: 262 → 265"),
        (["teacher.seed=2"], {}, "captured differently: teacher_sha256: [0-9a-f]{12} → [0-9a-f]{12}"),
    ],
    ids=["entries", "two settings", "data", "tokenizer", "teacher"],
)
def test_a_folder_is_not_gone_on_with_otherwise(
    folder: CapturedFolder, capture: Capture, overrides: list[str], settings: dict[str, Any], words: str
) -> None:
    shards = {path: path.read_bytes() for path in folder.root.glob("*.*")}

    with pytest.raises(ConfigError, match=words):
        capture(*overrides, **settings)

    assert shards == {path: path.read_bytes() for path in folder.root.glob("*.*")}
    assert not folder.set_aside.exists()


def test_other_data_are_named(folder: CapturedFolder, capture: Capture, data: Path) -> None:
    data.write_text(data.read_text() + '{"text": "one more"}\n')

    with pytest.raises(ConfigError, match="captured differently: data_sha256"):
        capture()


def test_a_later_versions_folder_is_refused_and_left_alone(capture: Capture, tmp_path: Path) -> None:
    (tmp_path / "logits").mkdir()
    content = encode({"v": 2, "shards": {}})
    (tmp_path / "logits" / "manifest.json").write_bytes(content)

    with pytest.raises(NewerFormat):
        capture()

    assert content == (tmp_path / "logits" / "manifest.json").read_bytes()


def test_a_second_writer_is_refused(folder: CapturedFolder, capture: Capture) -> None:
    first = WriterLock(folder.lock)

    with pytest.raises(RunInUse, match=f"{folder.root} is being written by process"):
        capture()

    first.release()


def test_captured_logits_are_no_teacher_to_capture(folder: CapturedFolder, capture: Capture, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.kind is logits, and only a model"):
        capture("teacher.kind=logits", f"teacher.path={folder.root}", "loss.intermediate=0", out=tmp_path / "other")


@pytest.mark.parametrize("name", ["mine.txt", "manifest.json"])
def test_a_folder_with_something_else_in_it_is_left_alone(capture: Capture, tmp_path: Path, name: str) -> None:
    out = tmp_path / "there"
    out.mkdir()
    (out / name).write_text("{}")

    with pytest.raises(ConfigError, match=f"{out} holds files of something else"):
        capture(out=out)

    assert [out / name] == list(out.iterdir())


def test_a_file_is_no_folder_to_fill(capture: Capture, tmp_path: Path) -> None:
    out = tmp_path / "there"
    out.write_text("mine")

    with pytest.raises(ConfigError, match=f"{out} is a file"):
        capture(out=out)

    assert "mine" == out.read_text()


def test_a_whole_capture_does_without_its_cache(folder: CapturedFolder, capture: Capture) -> None:
    before = content_of(folder)
    shutil.rmtree(folder.cache)

    capture()

    assert before == content_of(folder)


def test_more_entries_than_the_vocabulary_has_cannot_be_kept(capture: Capture) -> None:
    with pytest.raises(ConfigError, match=r"--top-k 263 is more than the 262 entries"):
        capture(top_k=263)


def test_a_request_to_stop_keeps_the_shards_so_far(capture: Capture, data: Path, tmp_path: Path) -> None:
    capture()
    whole = content_of(CapturedFolder(tmp_path / "logits"))
    config = load_config(KdConfig, [], [f"data.path={data}", *SMALL])
    settings = CaptureSettings(top_k=4, temperature=2.0, shard_tokens=28, batch_size=2)
    other = CapturedFolder(tmp_path / "other")

    with pytest.raises(StopRequested):
        capture_logits(config, settings, other.root, interrupts=_AfterQuestions(3))

    manifest = other.read_manifest()
    assert manifest is not None
    assert 0 < len(manifest.shards) < manifest.num_shards
    capture(out=other.root)
    assert whole == content_of(other)


class _AfterQuestions(Interrupts):
    """Somebody asks to stop after this many batches."""

    def __init__(self, num: int) -> None:
        super().__init__()
        self._left = num

    def raise_if_requested(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise StopRequested("SIGTERM")


def test_entries_beyond_the_tokenizers_vocabulary_are_no_part_of_the_distribution() -> None:
    logits = torch.randn(1, 3, 12, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, IGNORED, 2]])
    expected = largest_entries(logits[..., :9], targets, vocab_size=9, top_k=9, temperature=2.0)

    logits[..., 9:] = 100.0

    found = largest_entries(logits, targets, vocab_size=9, top_k=9, temperature=2.0)
    assert torch.equal(expected.ids, found.ids)
    assert torch.equal(expected.logprobs, found.logprobs)
    torch.testing.assert_close(torch.ones(2), found.logprobs.exp().sum(dim=-1))


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
def test_a_teacher_whose_logits_are_no_numbers_is_refused(spoilt: float) -> None:
    logits = torch.zeros(1, 3, 5)
    logits[0, 1, 2] = spoilt

    with pytest.raises(ModelMismatch, match="NaN or infinities"):
        largest_entries(logits, torch.zeros(1, 3, dtype=torch.long), vocab_size=5, top_k=2, temperature=1.0)


def test_a_teacher_with_fewer_entries_than_the_tokenizer_is_refused(
    make_model: Callable[..., PreTrainedModel], capture: Capture, folder: CapturedFolder, tmp_path: Path
) -> None:
    teacher = tmp_path / "small"
    shutil.copytree(folder.tokenizer, teacher)
    make_model(vocab_size=280).save_pretrained(str(teacher))
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    tokenizer["added_tokens"] += [
        {**tokenizer["added_tokens"][0], "id": 262 + number, "content": f"<{number}>"} for number in range(28)
    ]
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))

    with pytest.raises(ModelMismatch, match="The teacher's vocabulary has 280 entries, the tokenizer's 290"):
        capture("teacher.kind=local", f"teacher.path={teacher}", out=tmp_path / "other")
