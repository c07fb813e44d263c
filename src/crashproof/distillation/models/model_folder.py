"""What a model's folder says before its weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from crashproof.distillation.models.config_file import COPY_AGAIN, NEEDED, read_config_file, refusal, why
from crashproof.distillation.models.text_model import most_positions

__all__ = ["DTYPES", "ModelFolder", "weight_files"]

_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""By name; a student is saved in no other."""
_NAMES_IN_FILES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A local `transformers` folder of a causal language model; no weight has been read."""

    path: Path
    config: PreTrainedConfig
    dtype: torch.dtype
    """In which its weights are saved."""

    @classmethod
    def read(cls, path: Path) -> ModelFolder:
        """Read a folder's config, and the headers of its weights; code in the folder is never run.

        Raises:
            ConfigError: It holds nothing that can be trained here; says why.
        """
        content = read_config_file(path)
        if _needs_own_code(content):
            model_type = content.get("model_type")
            problem = f"it needs the code in its folder (auto_map, model type {model_type}), which is never run"
            raise refusal(path, problem, "Use a model that transformers knows by itself.")
        config = _load_config(path)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise refusal(path, f"its type, {config.model_type}, does not generate text", NEEDED)
        in_weights = _dtype_of_weights(path)
        return cls(path=path, config=config, dtype=_stated_dtype(config) or in_weights)

    @property
    def most_positions(self) -> int | None:
        """The most tokens that the model accepts; None if there is no limit."""
        return most_positions(self.config)


def weight_files(path: Path) -> list[Path]:
    """The files of a folder's weights, in the order in which `transformers` reads them; or an index of pickled ones.

    Raises:
        ConfigError: there are none, or some are missing.
    """
    if (path / _ONE_FILE).is_file():
        return [path / _ONE_FILE]
    if (path / _INDEX).is_file():
        files = _files_of_index(path / _INDEX)
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            problem = f"{len(missing)} of {len(files)} files of its weights are missing ({missing[0]})"
            raise refusal(path, problem, COPY_AGAIN)
        return files
    pickled = [path / name for name in _PICKLED if (path / name).is_file()]
    if not pickled:
        raise refusal(path, "it has no weights (model.safetensors)", COPY_AGAIN)
    return pickled


def _needs_own_code(content: dict[str, Any]) -> bool:
    return bool(content.get("auto_map")) and content.get("model_type") not in CONFIG_MAPPING


def _load_config(path: Path) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
    except MemoryError:
        raise
    except Exception as error:  # The config of any model, from anywhere, may raise anything.
        raise refusal(path, f"transformers cannot read its config ({why(error)})", NEEDED) from error
    return config


def _stated_dtype(config: PreTrainedConfig) -> torch.dtype | None:
    """What the config says, for the whole or for its text model; None if that is nothing a student is saved in."""
    stated = [getattr(each, "dtype", None) for each in (config, config.get_text_config(decoder=True))]
    return next((each for each in stated if each in DTYPES.values()), None)


def _dtype_of_weights(path: Path) -> torch.dtype:
    """The type of the first weight that is one of `DTYPES`; raises `ConfigError` if a file is missing or damaged."""
    files = weight_files(path)
    found = [name for file in files if file.suffix == ".safetensors" for name in _dtype_names(file)]
    return next((_NAMES_IN_FILES[name] for name in found if name in _NAMES_IN_FILES), torch.float32)


def _files_of_index(index: Path) -> list[Path]:
    try:
        names = set(msgspec.json.decode(index.read_bytes())["weight_map"].values())
        return [index.parent / name for name in sorted(names)]
    except (OSError, msgspec.DecodeError, LookupError, TypeError, AttributeError) as error:
        raise refusal(index.parent, f"{index.name} cannot be read ({why(error)})", COPY_AGAIN) from error


def _dtype_names(file: Path) -> list[str]:
    try:
        with safe_open(str(file), framework="pt") as weights:
            return [weights.get_slice(name).get_dtype() for name in weights.keys()]  # noqa: SIM118 - it is no dict
    except (OSError, SafetensorError) as error:
        raise refusal(file.parent, f"{file.name} is damaged ({why(error)})", COPY_AGAIN) from error
