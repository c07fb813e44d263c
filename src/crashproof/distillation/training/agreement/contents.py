"""Make sure that all processes have read and prepared the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from crashproof.checkpoints.digest import Digest, digest_of
from crashproof.distillation.data.answered.prompts import PromptSource
from crashproof.distillation.data.captured_folder import CapturedFolder
from crashproof.distillation.data.source import Source
from crashproof.distillation.data.text_data import TrainingData
from crashproof.distillation.settings.run import RunConfig
from crashproof.distillation.text.tokenizer import tokenizer_hash
from crashproof.distillation.training.preparation import Prepared
from crashproof.pytorch.agreement import all_or_none, require_same
from crashproof.pytorch.ranks import Ranks
from crashproof.pytorch.tensor_digest import sha256_of
from crashproof.rules.agreement.host_keys import comparable_config
from crashproof.rules.agreement.loaded_files import can_decide

__all__ = ["ModelDigests", "require_same_inputs", "require_same_preparation"]

_DIGITS = 16
_SAME_FILES = "Give all hosts the same files, or one file system; nothing was trained."
_SAME_BUT_FOR_ORDER = "The samples are the same, in another order."


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDigests:
    """The content of the folders that a run starts from; None without a folder."""

    student: Digest | None
    teacher: Digest | None
    """Of captured logits, their manifest, which names the digest of each shard."""

    @classmethod
    def read(cls, config: RunConfig) -> Self:
        """Read every byte of them; a folder that is missing is left to whoever loads it.

        Raises:
            FileUnreadable: A file cannot be read.
        """
        teacher = config.teacher.path
        if teacher is not None and config.teacher.kind == "logits":
            # The folder may also hold a cache and quarantined files.
            teacher = CapturedFolder(teacher).manifest
        return cls(student=_digest_of(config.student.path), teacher=_digest_of(teacher))

    def describe(self) -> dict[str, str]:
        """Each file that can decide what is loaded."""
        named = (("the teacher's", self.teacher), ("the student's", self.student))
        return {
            f"{whose} {name}": text
            for whose, digest in named
            if digest is not None
            for name, text in _describe_files(digest)
        }


def require_same_inputs(ranks: Ranks, config: RunConfig, source: Source | PromptSource, models: ModelDigests) -> None:
    """Compare what decides the training and lies in files, before anything is made of it.

    Raises:
        RanksDisagree: A process has read something else; names what, and the ranks.
    """
    if ranks.num_ranks == 1:
        return
    data = _describe_source(source)
    in_order = ranks.all_gather(data, "comparing the data")
    hint = _SAME_FILES
    if len(set(in_order)) > 1 and len(set(ranks.all_gather(_unordered(source), "comparing the samples"))) == 1:
        hint = f"{_SAME_BUT_FOR_ORDER} {hint}"
    # Data and models may have decided something in the config.
    description = {"the data": data, **models.describe(), **comparable_config(config.model_dump(mode="json"))}
    require_same(ranks, description, what="files", hint=hint)


def require_same_preparation(ranks: Ranks, config: RunConfig, prepared: Prepared) -> None:
    """Compare what was made of the files: tokens in their order, and models that no folder of the user's holds.

    Raises:
        RanksDisagree: A process has made something else of the same files; names what, and the ranks.
    """
    if ranks.num_ranks == 1:
        return
    with all_or_none(ranks, "digesting what was prepared"):
        description = _describe_prepared(prepared, config)
    require_same(ranks, description, what="tokens and first weights", hint=_SAME_FILES)


def _describe_source(source: Source | PromptSource) -> str:
    num_samples = len(source.samples if isinstance(source, Source) else source.prompts)
    return f"{num_samples:,} samples ({_short(source.sha256)})"


def _describe_prepared(prepared: Prepared, config: RunConfig) -> dict[str, str]:
    tokenizer, held_out = prepared.tokenizer, prepared.held_out
    return {
        "the held-out data": "none" if held_out is None else _describe_source(held_out),
        "the tokenizer": _short(tokenizer_hash(tokenizer)),
        "the chat template": _short(sha256_of(str(tokenizer.chat_template))),
        "the tokens for end and padding": f"{tokenizer.eos_token_id} and {tokenizer.pad_token_id}",
        "the tokens": _describe_tokens(prepared.data),
        "the held-out tokens": "none" if prepared.held_out_data is None else _describe_tokens(prepared.held_out_data),
        "the built-in teacher's weights": _describe_weights(_weights_of_teacher(prepared, config)),
        "the first weights of what is trained": _describe_weights(_new_weights(prepared.recipe, config)),
        "the random numbers that follow": _short(sha256_of(torch.get_rng_state())),
    }


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
    return None if path is None or not path.exists() else digest_of(path)


def _describe_files(digest: Digest) -> Iterable[tuple[str, str]]:
    if digest.files is None:
        yield "manifest", _short(digest.sha256)
        return
    for name, file in digest.files.items():
        if can_decide(name):
            yield name, f"{file.num_bytes:,} bytes ({_short(file.sha256)})"


def _describe_tokens(data: TrainingData) -> str:
    return f"{len(data):,} samples ({_short(data.digest())})"


def _describe_weights(weights: Mapping[str, Tensor]) -> str:
    """The weights that are in memory; those on the meta device have no values yet."""
    parts = [part for name, tensor in weights.items() for part in (name, tensor) if not tensor.is_meta]
    return _short(sha256_of(*parts)) if parts else "none"


def _weights_of_teacher(prepared: Prepared, config: RunConfig) -> Mapping[str, Tensor]:
    teacher = prepared.teacher
    return {} if teacher is None or config.teacher.path is not None else dict(teacher.state_dict())


def _new_weights(recipe: nn.Module, config: RunConfig) -> dict[str, Tensor]:
    """The weights that were drawn, and not read from the student's folder."""
    is_read = config.student.path is not None and config.student.lora is None
    return {
        name: weight.detach()
        for name, weight in recipe.named_parameters()
        if weight.requires_grad and not (is_read and name.startswith("student."))
    }


def _short(sha256: str) -> str:
    return f"sha256 {sha256[:_DIGITS]}"
