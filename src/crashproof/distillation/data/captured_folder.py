"""A folder of captured logits and its manifest.

`manifest.json` is replaced atomically after each shard, so it never names a shard that is not on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from crashproof.checkpoints.digest import sha256_of
from crashproof.disk.atomic import write_bytes_atomically
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import DataError, NewerFormat
from crashproof.records.lines.checksummed_line import is_intact, version_of
from crashproof.records.lines.codec import encode

__all__ = ["CAPTURE_AGAIN", "FORMAT_VERSION", "CaptureManifest", "CapturedFolder", "CapturedFrom", "ShardRecord"]

FORMAT_VERSION = 1

CAPTURE_AGAIN = "Run the same `crashproof capture-logits` again: it captures only what is missing or damaged."


class CapturedFrom(Struct, frozen=True, kw_only=True):
    """Everything that determines what is captured; the same for all shards of a folder."""

    data_sha256: str
    """SHA-256 of the data before any tokenizer."""
    tokens_sha256: str
    """SHA-256 of the tokens: `TokenizedData.sha256`."""
    tokenizer_sha256: str
    """SHA-256 of the tokenizer: `tokenizer_hash`."""
    teacher_sha256: str
    """SHA-256 of the teacher's folder."""
    max_length: int
    vocab_size: int
    """Entries of the distributions: the tokenizer's, without the padding of the model's vocabulary."""
    top_k: int
    temperature: float
    precision: str
    """Type of the teacher's matrix products."""
    batch_size: int
    shard_tokens: int

    def differences(self, now: Mapping[str, object]) -> list[str]:
        """The fields with other values in `now`, such as `top_k: 32 → 64`."""
        pairs = [(name, getattr(self, name), value) for name, value in now.items()]
        return [f"{name}: {_shown(before)} → {_shown(after)}" for name, before, after in pairs if before != after]


class ShardRecord(Struct, frozen=True, kw_only=True):
    """A complete shard on disk."""

    file: str
    first_sample: int
    num_samples: int
    num_rows: int
    """Predicted tokens in it."""
    num_bytes: int
    sha256: str


class CaptureManifest(Struct, frozen=True, kw_only=True, tag_field="v", tag=FORMAT_VERSION):
    """`manifest.json`."""

    captured_from: CapturedFrom
    tokenizer_files_sha256: str
    """SHA-256 of the folder `tokenizer`."""
    num_shards: int
    """All shards, captured or not."""
    shards: list[ShardRecord]
    """In the order of their samples."""

    def num_rows(self) -> int:
        """The number of tokens with a captured distribution."""
        return sum(shard.num_rows for shard in self.shards)

    def num_bytes(self) -> int:
        """The size of all shards."""
        return sum(shard.num_bytes for shard in self.shards)


class CapturedFolder:
    """Paths of captured logits, and reading and replacing their manifest."""

    def __init__(self, root: Path, *, disk: Disk = REAL_DISK) -> None:
        self.root = root
        self.disk = disk
        self.manifest = root / "manifest.json"
        self.tokenizer = root / "tokenizer"
        self.cache = root / "cache"
        self.set_aside = root / "set_aside"
        """Quarantine of damaged files."""
        self.lock = self.cache / "writer.lock"

    def is_ours(self) -> bool:
        """Whether a capture has begun here.

        Raises:
            NewerFormat: A later version's has.
        """
        if self.cache.is_dir():
            return True
        try:
            return self.read_manifest() is not None
        except DataError:
            # Other programs have a manifest.json too.
            return False

    def shard_name(self, number: int) -> str:
        """The file name of a shard, counted from 0."""
        return f"shard-{number:06d}.safetensors"

    def read_complete(self) -> CaptureManifest:
        """Read the manifest of a capture that is complete.

        Raises:
            DataError: There are no captured logits, or not all, or the manifest is damaged.
            NewerFormat: A later version wrote it.
        """
        manifest = self.read_manifest()
        if manifest is None:
            hint = "Pass the folder that capture-logits had as --out."
            raise DataError(self.root, "it contains no captured logits", hint=hint)
        if len(manifest.shards) < manifest.num_shards:
            found = f"{len(manifest.shards):,} of {manifest.num_shards:,} shards are captured"
            raise DataError(self.root, f"it is incomplete, {found}", hint=CAPTURE_AGAIN)
        return manifest

    def read_manifest(self) -> CaptureManifest | None:
        """Read the manifest; None if there is none.

        Raises:
            DataError: The manifest is damaged.
            NewerFormat: A later version wrote it.
        """
        try:
            line = self.manifest.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not is_intact(line):
            raise DataError(self.manifest, "it is damaged", hint=CAPTURE_AGAIN)
        if (found := version_of(line)) > FORMAT_VERSION:
            raise NewerFormat(self.manifest, found=found, known=FORMAT_VERSION)
        try:
            return msgspec.json.decode(line, type=CaptureManifest)
        except msgspec.ValidationError as error:
            raise DataError(self.manifest, f"it is not a manifest of captured logits ({error})") from error

    def write_manifest(self, manifest: CaptureManifest) -> None:
        """Replace the manifest."""
        write_bytes_atomically(self.manifest, encode(manifest), disk=self.disk)

    def problem_with(self, shard: ShardRecord) -> str | None:
        """Why a shard cannot be used, or None if it is intact; reads every byte."""
        path = self.root / shard.file
        try:
            num_bytes = path.stat().st_size
        except FileNotFoundError:
            return "it is missing"
        if num_bytes != shard.num_bytes:
            return f"it has {num_bytes:,} bytes instead of {shard.num_bytes:,}"
        return None if sha256_of(path) == shard.sha256 else "its bytes differ from those that were captured"

    def tokenizer_sha256(self) -> str:
        """SHA-256 of the tokenizer's files as they are now."""
        return sha256_of(self.tokenizer)

    def problem_with_tokenizer(self, manifest: CaptureManifest) -> str | None:
        """Why the tokenizer of the captured logits cannot be used, or None."""
        if not self.tokenizer.is_dir():
            return "it is missing"
        is_same = self.tokenizer_sha256() == manifest.tokenizer_files_sha256
        return None if is_same else "it is not the tokenizer that the logits were captured with"

    def move_aside(self, path: Path) -> Path:
        """Quarantine a damaged file or folder in `set_aside/`."""
        with storage_errors(self.set_aside):
            self.disk.make_folders(self.set_aside)
            target = RunFolder.free_name(self.set_aside / path.name)
            self.disk.replace(path, target)
            self.disk.sync_folder(self.set_aside)
            self.disk.sync_folder(path.parent)
        return target


def _shown(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)
