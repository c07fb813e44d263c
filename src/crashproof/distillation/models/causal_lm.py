"""Make, read and write causal language models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from crashproof.disk.atomic import write_bytes_atomically, write_folder_atomically
from crashproof.disk.files import REAL_DISK
from crashproof.disk.run_folder import RunFolder
from crashproof.distillation.models.config_file import why
from crashproof.distillation.models.lora import has_adapters, merge_adapters, save_adapter
from crashproof.distillation.models.model_folder import ModelFolder
from crashproof.distillation.models.text_model import most_positions, text_config
from crashproof.distillation.settings.models import ModelShape
from crashproof.errors import ConfigError, ModelMismatch

__all__ = [
    "convert",
    "load_model",
    "new_model",
    "require_causal",
    "require_length",
    "require_vocabulary",
    "require_whole",
    "save_folder",
    "save_model",
    "without_report",
    "write_model",
]

log = logging.getLogger("crashproof")

_ORIGIN_FILE = "crashproof.json"
_PROBE_TOKENS = 4
_REPORTING = ("modeling_utils", "distributed.tensor_parallel")
"""Modules of `transformers`; the second names layers that a tensor-parallel model, which this is not, would share."""


def new_model(shape: ModelShape, *, tokenizer: PreTrainedTokenizerFast, max_length: int) -> PreTrainedModel:
    """A model with fresh weights, drawn from the global generator.

    Raises:
        ConfigError: the width does not divide into the heads, or the vocabulary is smaller than the tokenizer's.
    """
    vocab_size = shape.vocab_size or len(tokenizer)
    if vocab_size < len(tokenizer):
        raise ConfigError(
            f"A model vocabulary of {vocab_size} cannot hold the tokenizer's {len(tokenizer)} entries.",
            hint="Raise vocab_size, or leave it out.",
        )
    if shape.d_model % (2 * shape.num_heads):
        raise ConfigError(
            f"d_model {shape.d_model} does not divide into {shape.num_heads} heads of an even width.",
            hint="Choose a multiple of twice the number of heads.",
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=shape.d_model,
            intermediate_size=shape.d_ff or max(8, round(shape.d_model * 8 / 3 / 8) * 8),
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_heads,
            max_position_embeddings=max(max_length, 64),
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def load_model(folder: Path) -> PreTrainedModel:
    """Read the causal language model of a local `transformers` folder, in fp32.

    Raises:
        ConfigError: the folder holds none, its weights are incomplete, or code in it would have to run.
    """
    ModelFolder.read(folder)
    model, found = _load(folder)
    require_whole(folder, found)
    require_causal(folder, model)
    return model


def require_whole(folder: Path, found: dict[str, Any]) -> None:
    """Refuse weights that would be drawn at random, and name those that are not used.

    `found` is what `transformers` says of them.

    Raises:
        ConfigError: some are missing, or have another shape than the config says.
    """
    for name, in_file, in_model in sorted(found["mismatched_keys"]):
        raise ConfigError(
            f"{name} in {folder} has the shape {tuple(in_file)}, and {tuple(in_model)} by its config.json.",
            hint="The weights belong to another config.json.",
        )
    missing, unused = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing:
        raise ConfigError(
            f"The weights in {folder} lack {len(missing):,} of the model's, such as {missing[0]}.",
            hint="They belong to a model without a head, or to another config.json.",
        )
    if unused:
        log.warning("%s: %s weights are not used, such as %s.", folder, f"{len(unused):,}", unused[0])


@torch.no_grad()
def require_causal(folder: Path, model: PreTrainedModel) -> None:
    """Refuse a model whose earlier positions see later tokens: they would see what they are to predict.

    Raises:
        ConfigError: they do, or it cannot compute.
    """
    device, was_training = next(model.parameters()).device, model.training
    ids = torch.arange(_PROBE_TOKENS, device=device).remainder(text_config(model).vocab_size).repeat(2, 1)
    ids[1, -1] = 0
    model.train(False)
    try:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    except Exception as error:  # As above.
        raise ConfigError(
            f"{type(model).__name__} in {folder} cannot compute on the {device.type.upper()} ({why(error)}).",
            hint="Install what it needs, or use another model.",
        ) from error
    finally:
        model.train(was_training)
    if not torch.allclose(logits[0], logits[1], rtol=1e-3, atol=1e-4, equal_nan=True):
        raise ConfigError(
            f"{folder} holds an encoder ({type(model).__name__}): its positions see the tokens that follow them.",
            hint="Use a causal language model, or set is_decoder in its config.json if it was trained as one.",
        )


def require_length(config: PreTrainedConfig, title: str, max_length: int) -> None:
    """Make sure that a model accepts samples as long as the data may have them.

    Raises:
        ConfigError: it does not.
    """
    most = most_positions(config)
    if most is not None and max_length > most:
        raise ConfigError(
            f"data.max_length is {max_length:,}, and the {title} takes {most:,} tokens.",
            hint=f"Set data.max_length to {most} or less, or leave it out; lines that are longer are then reported.",
        )


def require_vocabulary(model: PreTrainedModel, title: str, vocab_size: int) -> None:
    """Make sure that a model has a logit for each entry of the tokenizer; further ones are padding.

    Raises:
        ModelMismatch: it does not.
    """
    found = text_config(model).vocab_size
    if found < vocab_size:
        raise ModelMismatch(
            f"The {title}'s vocabulary has {found:,} entries, the tokenizer's {vocab_size:,}.",
            hint="Teacher and student must share the tokenizer that the data is read with.",
        )


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    origin: dict[str, str | int],
    dtype: torch.dtype | None = None,
) -> None:
    """Write a `transformers` folder atomically; see `write_model`, and `save_folder` for `origin`."""
    save_folder(lambda partial: write_model(model, partial, dtype=dtype), tokenizer, folder, origin=origin)


def write_model(model: PreTrainedModel, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config and weights into a folder that is being filled.

    Adapters are merged into the weights, and also saved in `adapter/`. With a `dtype`, the weights are converted to
    it. Such a model cannot be used afterwards.
    """
    if has_adapters(model):
        save_adapter(model, folder)
        model = merge_adapters(model)
    if dtype is not None:
        convert(model, dtype)
    model.save_pretrained(str(folder))


def save_folder(
    write: Callable[[Path], None],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    origin: dict[str, str | int],
) -> None:
    """Write a folder atomically that a model is written into.

    `origin` says what the model was made from, and is saved with it: a folder with the same origin is kept, any other
    of that name is first moved to `<name>.1`, `<name>.2`, ….
    """
    if folder.exists():
        if _read_origin(folder) == origin:
            return
        REAL_DISK.replace(folder, RunFolder.free_name(folder))
    with write_folder_atomically(folder) as partial:
        write(partial)
        tokenizer.save_pretrained(str(partial))
        write_bytes_atomically(partial / _ORIGIN_FILE, msgspec.json.encode(origin))


def convert(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert the weights of a model, and what its config says of them."""
    model.to(dtype)  # type: ignore[arg-type]  # transformers leaves it so.
    # Else a nested config would still name the type in which the weights were trained.
    text_config(model).dtype = dtype


@contextmanager
def without_report() -> Iterator[None]:
    """Keep `transformers` from writing a table of what it found: `require_whole` says it in a line."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in _REPORTING]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _load(folder: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what `transformers` found of its weights."""
    try:
        with without_report():
            # Typed as a model alone, though what was found comes with it.
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                local_files_only=True,
                dtype="float32",
                trust_remote_code=False,
                output_loading_info=True,
                # They are refused by their names instead.
                ignore_mismatched_sizes=True,
            )
    except MemoryError:
        raise
    except Exception as error:  # A model's own code may raise anything for weights or packages that it lacks.
        raise ConfigError(
            f"{folder} holds no causal language model that transformers can read ({why(error)}).",
            hint="It needs config.json and whole weights, and the packages that its type imports.",
        ) from error
    return loaded[0], loaded[1]


def _read_origin(folder: Path) -> object:
    try:
        return msgspec.json.decode((folder / _ORIGIN_FILE).read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
