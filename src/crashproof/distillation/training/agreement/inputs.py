"""Make sure that all processes have read the same files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from crashproof.checkpoints.digest import Digest, digest_of
from crashproof.data_files.reader import digest_files
from crashproof.data_files.selection import select_files
from crashproof.digests import SHA256, hexadecimal_of
from crashproof.distillation.data.answered.prompts import PromptSource
from crashproof.distillation.data.captured_folder import CapturedFolder
from crashproof.distillation.data.source import Source
from crashproof.distillation.settings.run import RunConfig
from crashproof.pytorch.coordination.agreement import require_same
from crashproof.pytorch.ranks import Ranks
from crashproof.pytorch.tensor_digest import short_digest
from crashproof.rules.agreement.host_keys import comparable_config
from crashproof.rules.agreement.loaded_files import can_decide

__all__ = ["InputDigests", "describe_source", "require_same_inputs"]

_HINT = "Give all hosts the same files, or one file system; nothing was trained."
_SAME_BUT_FOR_ORDER = "The samples are the same, in another order."


@dataclass(frozen=True, slots=True, kw_only=True)
class InputDigests:
    """The content of the files that a run starts from, beside the data that it learns."""

    student: Digest | None
    """None without a folder."""
    teacher: Digest | None
    """Likewise; of captured logits, their manifest, which names the digest of each shard."""
    held_out: str | None
    """SHA-256 of a separate file for evaluation; None without one."""

    @classmethod
    def read(cls, config: RunConfig) -> Self:
        """Read every byte; a folder that is missing is left to whoever loads it.

        Raises:
            DataError, FileUnreadable: A file cannot be read.
        """
        teacher, held_out = config.teacher.path, config.data.eval_path
        if teacher is not None and config.teacher.kind == "logits":
            # The folder may also hold a cache and quarantined files.
            teacher = CapturedFolder(teacher).manifest
        return cls(
            student=_digest_of(config.student.path),
            teacher=_digest_of(teacher),
            held_out=None if held_out is None else digest_files(select_files(held_out, split=config.data.eval_split)),
        )

    def describe(self) -> dict[str, str]:
        """Each file that can decide what is loaded."""
        described = {} if self.held_out is None else {"the held-out data": short_digest(self.held_out)}
        for whose, digest in (("the teacher's", self.teacher), ("the student's", self.student)):
            if digest is not None:
                described |= {f"{whose} {name}": text for name, text in _describe_files(digest)}
        return described


def require_same_inputs(
    ranks: Ranks, config: RunConfig, source: Source | PromptSource, digests: InputDigests
) -> None:
    """Compare what decides the training and lies in files, before anything is made of it.

    Raises:
        RanksDisagree: A process has read something else; names what, and the ranks.
    """
    if ranks.num_ranks == 1:
        return
    data = describe_source(source)
    in_order = ranks.all_gather(data, "comparing the data")
    hint = _HINT
    if len(set(in_order)) > 1 and len(set(ranks.all_gather(_unordered(source), "comparing the samples"))) == 1:
        hint = f"{_SAME_BUT_FOR_ORDER} {hint}"
    # Data and models may have decided something in the config.
    description = {"the data": data, **digests.describe(), **comparable_config(config.model_dump(mode="json"))}
    require_same(ranks, description, what="files", hint=hint)


def describe_source(source: Source | PromptSource) -> str:
    """How many samples there are, and their digest."""
    num_samples = len(source.samples if isinstance(source, Source) else source.prompts)
    return f"{num_samples:,} samples ({short_digest(source.sha256)})"


def _unordered(source: Source | PromptSource) -> str:
    """A digest of the samples that does not depend on their order."""
    samples: Iterable[object] = source.samples if isinstance(source, Source) else source.chats
    total = sum(int.from_bytes(hashlib.sha256(_as_text(sample).encode()).digest(), "big") for sample in samples)
    return f"{total % 2**256:x}"


def _as_text(sample: object) -> str:
    if isinstance(sample, Mapping):
        # Not the number of its line, nor its place.
        sample = {name: value for name, value in sample.items() if name not in ("line", "_place")}
    return json.dumps(sample, sort_keys=True, default=str)


def _digest_of(path: Path | None) -> Digest | None:
    return None if path is None or not path.exists() else digest_of(path, algorithm=SHA256)


def _describe_files(digest: Digest) -> Iterable[tuple[str, str]]:
    if digest.files is None:
        yield "manifest", short_digest(hexadecimal_of(digest.digest))
        return
    for name, file in digest.files.items():
        if can_decide(name):
            yield name, f"{file.num_bytes:,} bytes ({short_digest(hexadecimal_of(file.digest))})"
