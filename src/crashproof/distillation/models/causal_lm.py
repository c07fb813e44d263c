"""Make, read and write causal language models."""

from __future__ import annotations

from pathlib import Path

import msgspec
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from crashproof.disk.atomic import write_bytes_atomically, write_folder_atomically
from crashproof.disk.files import REAL_DISK
from crashproof.disk.run_folder import RunFolder
from crashproof.distillation.models.lora import has_adapters, merge_adapters, save_adapter
from crashproof.distillation.settings.models import ModelShape
from crashproof.errors import ConfigError, ModelMismatch

__all__ = ["load_model", "new_model", "require_length", "require_vocabulary", "save_model"]

_ORIGIN_FILE = "crashproof.json"


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
        ConfigError: the folder holds none.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder.", hint="Pass a local transformers model folder; nothing is downloaded."
        )
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, dtype="float32"
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(
            f"{folder} holds no causal language model that transformers can read ({reason}).",
            hint="It needs config.json and safetensors weights.",
        ) from error
    return model


def require_length(model: PreTrainedModel, title: str, max_length: int) -> None:
    """Make sure that a model accepts samples as long as the data may have them.

    Raises:
        ConfigError: it does not.
    """
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and max_length > most:
        raise ConfigError(
            f"data.max_length is {max_length:,}, and the {title} takes {most:,} tokens.",
            hint=f"Set data.max_length to {most} or less; lines that are longer are then reported.",
        )


def require_vocabulary(model: PreTrainedModel, title: str, vocab_size: int) -> None:
    """Make sure that a model has a logit for each entry of the tokenizer; further ones are padding.

    Raises:
        ModelMismatch: it does not.
    """
    found = model.config.vocab_size
    if found < vocab_size:
        raise ModelMismatch(
            f"The {title}'s vocabulary has {found:,} entries, the tokenizer's {vocab_size:,}.",
            hint="Teacher and student must share the tokenizer that the data is read with.",
        )


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, *, origin: dict[str, str | int]
) -> None:
    """Write a `transformers` folder atomically.

    Adapters are merged into the weights, and also saved in `adapter/`; such a model cannot be used afterwards.

    `origin` says what the model was made from, and is saved with it: a folder with the same origin is kept, any other
    of that name is first moved to `<name>.1`, `<name>.2`, ….
    """
    if folder.exists():
        if _read_origin(folder) == origin:
            return
        REAL_DISK.replace(folder, RunFolder.free_name(folder))
    with write_folder_atomically(folder) as partial:
        if has_adapters(model):
            save_adapter(model, partial)
            model = merge_adapters(model)
        model.save_pretrained(str(partial))
        tokenizer.save_pretrained(str(partial))
        write_bytes_atomically(partial / _ORIGIN_FILE, msgspec.json.encode(origin))


def _read_origin(folder: Path) -> object:
    try:
        return msgspec.json.decode((folder / _ORIGIN_FILE).read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
