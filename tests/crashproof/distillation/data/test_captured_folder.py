from pathlib import Path

import msgspec
import pytest

from crashproof.checkpoints.digest import sha256_of
from crashproof.distillation.data.captured_folder import CapturedFolder, CapturedFrom, CaptureManifest, ShardRecord
from crashproof.errors import DataError, NewerFormat
from crashproof.records.lines.codec import encode

FROM = CapturedFrom(
    data_sha256="da" * 32,
    tokens_sha256="70" * 32,
    tokenizer_sha256="77" * 32,
    teacher_sha256="7e" * 32,
    max_length=128,
    vocab_size=300,
    top_k=32,
    temperature=2.0,
    precision="float32",
    batch_size=8,
    shard_tokens=1000,
)
SHARD = ShardRecord(
    file="shard-000000.safetensors", first_sample=0, num_samples=3, num_rows=9, num_bytes=4, sha256=""
)
MANIFEST = CaptureManifest(captured_from=FROM, tokenizer_files_sha256="77" * 32, num_shards=2, shards=[SHARD])


@pytest.fixture
def folder(tmp_path: Path) -> CapturedFolder:
    return CapturedFolder(tmp_path)


def test_a_manifest_is_read_as_it_was_written(folder: CapturedFolder) -> None:
    folder.write_manifest(MANIFEST)

    assert MANIFEST == folder.read_manifest()
    assert (9, 4) == (MANIFEST.num_rows(), MANIFEST.num_bytes())


def test_a_folder_without_a_manifest_has_none(folder: CapturedFolder, tmp_path: Path) -> None:
    assert None is folder.read_manifest()
    assert None is CapturedFolder(tmp_path / "nowhere").read_manifest()


def test_a_later_versions_manifest_is_refused_and_left_alone(folder: CapturedFolder) -> None:
    content = encode({"v": 2, "everything": "is different"})
    folder.manifest.write_bytes(content)

    with pytest.raises(NewerFormat, match=r"manifest\.json has format version 2"):
        folder.read_manifest()

    assert content == folder.manifest.read_bytes()


def test_every_altered_byte_of_a_manifest_is_noticed(folder: CapturedFolder) -> None:
    folder.write_manifest(MANIFEST)
    content = folder.manifest.read_bytes()

    for place in range(0, len(content), 7):
        folder.manifest.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(
            DataError, match=r"manifest\.json: it is damaged\. Run the same `crashproof capture-logits`"
        ):
            folder.read_manifest()


def test_a_checksummed_line_of_another_kind_is_not_a_manifest(folder: CapturedFolder) -> None:
    folder.manifest.write_bytes(encode({"v": 1, "step": 7}))

    with pytest.raises(DataError, match="it is not a manifest of captured logits"):
        folder.read_manifest()


def test_fields_of_a_later_release_are_passed_over(folder: CapturedFolder) -> None:
    content = msgspec.to_builtins(MANIFEST)
    folder.manifest.write_bytes(encode({**content, "captured_from": {**content["captured_from"], "more": 1}}))

    assert MANIFEST == folder.read_manifest()


def test_what_was_captured_otherwise_is_named() -> None:
    assert ["top_k: 32 → 64", "teacher_sha256: 7e7e7e7e7e7e → bad"] == FROM.differences(
        {"top_k": 64, "temperature": 2.0, "teacher_sha256": "bad"}
    )


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"whole", None),
        (b"Whole", "its bytes differ from those that were captured"),
        (b"who", "it has 3 bytes instead of 5"),
        (None, "it is missing"),
    ],
    ids=["whole", "altered", "short", "missing"],
)
def test_damage_to_a_shard_is_reported(folder: CapturedFolder, content: bytes | None, problem: str | None) -> None:
    path = folder.root / SHARD.file
    path.write_bytes(b"whole")
    shard = msgspec.structs.replace(SHARD, num_bytes=5, sha256=sha256_of(path))
    path.unlink()
    if content is not None:
        path.write_bytes(content)

    assert problem == folder.problem_with(shard)


def test_quarantine_overwrites_nothing(folder: CapturedFolder) -> None:
    path = folder.root / SHARD.file
    targets = []
    for content in (b"one", b"two"):
        path.write_bytes(content)
        targets.append(folder.move_aside(path))

    assert [b"one", b"two"] == [target.read_bytes() for target in targets]
    assert not path.exists()
