"""Capture a teacher's distributions.

Shard by shard: first its file, then the manifest that names it. A killed capture loses at most the shard that it was
computing; the next start continues after the intact ones.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.checkpoints.digest import sha256_of
from crashproof.digests import SHA256, hexadecimal_of
from crashproof.disk.atomic import remove_partials, write_atomically
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.lock import WriterLock
from crashproof.distillation.data.captured_folder import CapturedFolder, CapturedFrom, CaptureManifest, ShardRecord
from crashproof.distillation.data.shards import ShardPlan, pack_shard, plan_shards
from crashproof.distillation.data.source import Source
from crashproof.distillation.data.text_data import TokenizedData, TopK, load_source, tokenized
from crashproof.distillation.display import ProgressDisplay, show_progress
from crashproof.distillation.losses.divergences import IGNORED, next_token_targets
from crashproof.distillation.models.causal_lm import require_vocabulary
from crashproof.distillation.recipes.kd import KD
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.distillation.settings.section import Section
from crashproof.distillation.teachers.local import load_teacher, prepare_teacher
from crashproof.distillation.text.tokenizer import is_kept_tokenizer, keep_tokenizer, load_tokenizer, tokenizer_hash
from crashproof.distillation.training.lessons import split_source
from crashproof.distillation.training.preparation import tokenizer_for
from crashproof.distillation.training.sample_length import with_max_length
from crashproof.errors import ConfigError, DataError, ModelMismatch
from crashproof.pytorch.device import ComputeDevice, choose_device, compute_deterministically
from crashproof.pytorch.interrupts import Interrupts

__all__ = ["CaptureSettings", "capture_logits", "largest_entries"]

log = logging.getLogger("crashproof")

_ROWS_AT_A_TIME = 512


class CaptureSettings(Section):
    """Options of `crashproof capture-logits`, beside the config of a trainer."""

    top_k: int = Field(ge=1)
    """How many of the largest entries of each distribution are kept."""
    temperature: float = Field(gt=0)
    """Softens the distributions before they are cut; the loss that uses them must have the same one."""
    shard_tokens: int = Field(ge=1)
    """Predicted tokens per file."""
    batch_size: int = Field(ge=1)
    """Samples per forward pass."""


def capture_logits(
    config: KdConfig, settings: CaptureSettings, out: Path, *, interrupts: Interrupts, disk: Disk = REAL_DISK
) -> CaptureManifest:
    """Fill a folder with the largest entries of a teacher's next-token distributions, or continue filling it.

    Raises:
        RunInUse: another process is filling this folder.
        ConfigError: the folder was started with other settings, data or teacher; names what differs.
        DataError, ModelMismatch: data or teacher are unusable; nothing was captured.
        NewerFormat: a later version started the folder.
        StopRequested: a stop was requested; the shards so far are kept.
    """
    folder = CapturedFolder(out, disk=disk)
    _require_usable(folder, config)
    config = with_max_length(config)
    source = load_source(config.data)
    disk.make_folders(folder.cache)
    lock = WriterLock(folder.lock, disk=disk)
    try:
        capture, teacher = _begin(folder, config, settings, source, interrupts)
        return capture.run(teacher)
    finally:
        lock.release()


def largest_entries(logits: Tensor, targets: Tensor, *, vocab_size: int, top_k: int, temperature: float) -> TopK:
    """The largest log-probabilities of each position with a target, in descending order; (rows, k).

    Args:
        logits: (batch, length, vocabulary).
        targets: (batch, length), `IGNORED` where nothing is predicted.
        vocab_size: The model's entries beyond these are padding.
        top_k: Entries per row.
        temperature: Divides the logits.

    Raises:
        ModelMismatch: a distribution holds NaN.
    """
    rows = (targets.flatten() != IGNORED).nonzero().squeeze(-1)
    ids, logprobs = [], []
    for chunk in torch.split(rows, _ROWS_AT_A_TIME):
        softened = logits.flatten(0, 1)[chunk, :vocab_size].float() / temperature
        largest = functional.log_softmax(softened, dim=-1).topk(top_k, dim=-1)
        ids.append(largest.indices.cpu())
        logprobs.append(largest.values.cpu())
    topk = TopK(ids=torch.cat(ids), logprobs=torch.cat(logprobs))
    # NaN sorts first.
    if topk.logprobs[:, 0].isnan().any():
        raise ModelMismatch(
            "The teacher's logits hold NaN or infinities.",
            hint="Set train.precision to float32, or check its weights.",
        )
    return topk


@dataclass(slots=True, kw_only=True)
class _Capture:
    """Fills a folder whose manifest names the shards that are captured already."""

    folder: CapturedFolder
    manifest: CaptureManifest
    tokens: TokenizedData
    plans: list[ShardPlan]
    device: ComputeDevice
    interrupts: Interrupts

    def run(self, teacher: Path) -> CaptureManifest:
        """Capture every missing shard."""
        done_files = {shard.file for shard in self.manifest.shards}
        missing = {self.folder.shard_name(number): plan for number, plan in enumerate(self.plans)}
        missing = {name: plan for name, plan in missing.items() if name not in done_files}
        log.info("%s of %s shards are captured.", f"{len(done_files):,}", f"{len(self.plans):,}")
        if missing:
            model = self._load_model(teacher)
            done = sum(shard.num_samples for shard in self.manifest.shards)
            with show_progress("capture", total_steps=len(self.tokens), first_step=done, unit="sample") as display:
                for name, plan in missing.items():
                    topk = self._capture_shard(model, plan, display, done)
                    self._write(name, plan, topk)
                    done += plan.num_samples
        return self.manifest

    def _load_model(self, teacher: Path) -> PreTrainedModel:
        model = load_teacher(teacher)
        require_vocabulary(model, "teacher", self.manifest.captured_from.vocab_size)
        model.to(self.device.device)  # type: ignore[arg-type]  # transformers leaves it so.
        return model

    def _capture_shard(self, model: PreTrainedModel, plan: ShardPlan, display: ProgressDisplay, done: int) -> TopK:
        captured_from = self.manifest.captured_from
        samples = list(range(plan.first_sample, plan.first_sample + plan.num_samples))
        entries = []
        # A batch never spans two shards, so a shard's content does not depend on where a capture was resumed.
        for first in range(0, len(samples), captured_from.batch_size):
            self.interrupts.raise_if_requested()
            chosen = samples[first : first + captured_from.batch_size]
            batch = self.tokens.batch(chosen).to(self.device.device)
            with torch.no_grad(), self.device.autocast():
                logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            entries.append(
                largest_entries(
                    logits,
                    next_token_targets(batch.labels),
                    vocab_size=captured_from.vocab_size,
                    top_k=captured_from.top_k,
                    temperature=captured_from.temperature,
                )
            )
            display.advance(done + first + len(chosen))
        return TopK(
            ids=torch.cat([each.ids for each in entries]), logprobs=torch.cat([each.logprobs for each in entries])
        )

    def _write(self, name: str, plan: ShardPlan, topk: TopK) -> None:
        """Publish a shard, then the manifest that names it."""
        path = self.folder.root / name
        samples = self.tokens.part(plan.first_sample, plan.num_samples)
        content = pack_shard(samples, topk, vocab_size=self.manifest.captured_from.vocab_size)
        if path.exists() and path.read_bytes() != content:
            # Not in the manifest, and not the file that a kill between the two writes would leave.
            log.warning("%s does not belong to this capture; moved to %s.", path, self.folder.move_aside(path))
        written = write_atomically(path, lambda file: file.write(content), algorithm=SHA256, disk=self.folder.disk)
        record = ShardRecord(
            file=name,
            first_sample=plan.first_sample,
            num_samples=plan.num_samples,
            num_rows=plan.num_rows,
            num_bytes=written.num_bytes,
            sha256=hexadecimal_of(written.digest),
        )
        shards = sorted([*self.manifest.shards, record], key=lambda each: each.first_sample)
        self.manifest = msgspec.structs.replace(self.manifest, shards=shards)
        self.folder.write_manifest(self.manifest)


def _require_usable(folder: CapturedFolder, config: KdConfig) -> None:
    if not config.teacher.is_a_model:
        raise ConfigError(
            f"teacher.kind is {config.teacher.kind}, and only a model can be captured.",
            hint="Set teacher.kind to builtin or local.",
        )
    if folder.root.exists() and not folder.root.is_dir():
        raise ConfigError(f"{folder.root} is a file, not a folder.", hint="Pass a folder as --out.")
    if folder.root.is_dir() and not folder.is_ours() and any(folder.root.iterdir()):
        raise ConfigError(
            f"{folder.root} holds files of something else.", hint="Pass an empty or a new folder as --out."
        )


def _begin(
    folder: CapturedFolder, config: KdConfig, settings: CaptureSettings, source: Source, interrupts: Interrupts
) -> tuple[_Capture, Path]:
    """Start or resume a capture: quarantine damage and write the manifest; also returns the teacher's folder."""
    found = _read_manifest(folder)
    remove_partials(folder.root, disk=folder.disk)
    compute_deterministically()
    device = choose_device(config.train.device, config.train.precision)
    given = tokenizer_for(config, source, folder.cache)
    # Held-out samples are not trained on, so they need no distributions.
    learned, _ = split_source(KD, config, source)
    if settings.top_k > len(given):
        raise ConfigError(
            f"--top-k {settings.top_k:,} is more than the {len(given):,} entries of the vocabulary.", hint="Lower it."
        )
    captured_from = _captured_from(config, settings, learned, given, device)
    # Checked before anything is written, and before a teacher is trained in vain.
    _require_same(folder, found, captured_from)
    tokenizer = _keep_tokenizer(folder, found, given)
    tokens = tokenized(learned, config.data, tokenizer, folder.cache)
    max_length = config.data.max_length
    teacher = prepare_teacher(
        config.teacher, tokens, tokenizer, max_length=max_length, cache=folder.cache, interrupts=interrupts
    )
    captured_from |= {"tokens_sha256": tokens.sha256(), "teacher_sha256": sha256_of(teacher)}
    _require_same(folder, found, captured_from)
    plans = plan_shards(tokens, settings.shard_tokens)
    manifest = CaptureManifest(
        captured_from=msgspec.convert(captured_from, CapturedFrom),
        tokenizer_files_sha256=folder.tokenizer_sha256(),
        num_shards=len(plans),
        shards=[] if found is None else _keep_intact_shards(folder, found),
    )
    folder.write_manifest(manifest)
    capture = _Capture(
        folder=folder, manifest=manifest, tokens=tokens, plans=plans, device=device, interrupts=interrupts
    )
    return capture, teacher


def _captured_from(
    config: KdConfig,
    settings: CaptureSettings,
    source: Source,
    tokenizer: PreTrainedTokenizerFast,
    device: ComputeDevice,
) -> dict[str, object]:
    """The fields of `CapturedFrom` that are known before tokenizing."""
    return {
        "data_sha256": source.sha256,
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "max_length": config.data.max_length,
        "vocab_size": len(tokenizer),
        "precision": str(device.autocast_dtype or torch.float32).removeprefix("torch."),
        **settings.model_dump(),
    }


def _read_manifest(folder: CapturedFolder) -> CaptureManifest | None:
    try:
        return folder.read_manifest()
    except DataError as error:
        # The shards that it named are captured again, and compared with the existing files.
        log.warning("%s Moved to %s.", error.message, folder.move_aside(folder.manifest))
        return None


def _require_same(folder: CapturedFolder, found: CaptureManifest | None, now: Mapping[str, object]) -> None:
    differences = [] if found is None else found.captured_from.differences(now)
    if differences:
        raise ConfigError(
            f"{folder.root} holds logits that were captured differently: {'; '.join(differences)}.",
            hint="Restore the old values, or pass another folder as --out.",
        )


def _keep_tokenizer(
    folder: CapturedFolder, found: CaptureManifest | None, given: PreTrainedTokenizerFast
) -> PreTrainedTokenizerFast:
    """Keep the tokenizer in the folder, and read it from there, as a trainer will."""
    is_kept = is_kept_tokenizer(folder.tokenizer, given)
    if is_kept and found is not None:
        is_kept = folder.problem_with_tokenizer(found) is None
    if not is_kept:
        if folder.tokenizer.exists():
            aside = folder.move_aside(folder.tokenizer)
            log.warning("%s is damaged, or belongs to another teacher; moved to %s.", folder.tokenizer, aside)
        keep_tokenizer(given, folder.tokenizer, disk=folder.disk)
    return load_tokenizer(folder.tokenizer)


def _keep_intact_shards(folder: CapturedFolder, found: CaptureManifest) -> list[ShardRecord]:
    """Keep the shards that are as they were captured, and quarantine the others."""
    intact = []
    for shard in found.shards:
        path = folder.root / shard.file
        problem = folder.problem_with(shard)
        if problem is None:
            intact.append(shard)
        elif path.exists():
            log.warning("%s: %s. It is captured again; moved to %s.", path, problem, folder.move_aside(path))
        else:
            log.warning("%s: %s. It is captured again.", path, problem)
    return intact
