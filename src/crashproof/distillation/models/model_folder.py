"""What a model's folder says before its weights are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from crashproof.distillation.models.text_model import most_positions
from crashproof.errors import ConfigError

__all__ = ["DTYPES", "ModelFolder", "weight_files", "why"]

_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""By name; a student is saved in no other."""
_NAMES_IN_FILES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_COPY = "Copy the folder again, or save the model again with save_pretrained."


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
        content = _read_config_file(path)
        for problem_with in _PROBLEMS:
            problem, hint = problem_with(content)
            if problem:
                raise _refusal(path, problem, hint)
        config = _load_config(path)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise _refusal(path, f"its type, {config.model_type}, does not generate text", _NEEDED)
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
            raise _refusal(path, problem, _COPY)
        return files
    pickled = [path / name for name in _PICKLED if (path / name).is_file()]
    if not pickled:
        raise _refusal(path, "it has no weights (model.safetensors)", _COPY)
    return pickled


def why(error: BaseException) -> str:
    """The first line of a foreign error, short enough for one line of ours."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")


_OF_ENCODERS = ("ForMaskedLM", "ForPreTraining")
_NEEDED = "Pass the folder of a causal language model, as save_pretrained writes it."


def _refusal(path: Path, problem: str, hint: str) -> ConfigError:
    return ConfigError(f"{path} holds no causal language model that can be used: {problem}.", hint=hint)


def _read_config_file(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise ConfigError(
            f"{path} is not a folder.", hint="Pass a local transformers model folder; nothing is downloaded."
        )
    if (path / "adapter_config.json").is_file():
        raise _refusal(
            path,
            "it is an adapter of PEFT, which needs its base model",
            "Merge it first (merge_and_unload, save_pretrained), and pass that folder.",
        )
    file = path / "config.json"
    try:
        content = msgspec.json.decode(file.read_bytes())
    except FileNotFoundError as error:
        raise _refusal(path, "config.json is missing", _NEEDED) from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _refusal(path, f"config.json cannot be read ({why(error)})", _COPY) from error
    if not isinstance(content, dict):
        raise _refusal(path, "config.json is not an object", _COPY)
    return content


def _quantized(content: dict[str, Any]) -> tuple[str, str]:
    text = content.get("text_config")
    nested = text.get("quantization_config") if isinstance(text, dict) else None
    found = content.get("quantization_config") or nested
    if not found:
        return "", ""
    method = found.get("quant_method", "unknown method") if isinstance(found, dict) else "unknown method"
    return f"its weights are quantized ({method})", "Pass the model's folder in bfloat16 or float32."


def _encodes(content: dict[str, Any]) -> tuple[str, str]:
    if content.get("is_encoder_decoder"):
        return "it is an encoder with a decoder", _NEEDED
    names = [str(name) for name in content.get("architectures") or ()]
    if names and all(name.endswith(_OF_ENCODERS) for name in names):
        return f"it is an encoder ({names[0]}), whose positions see what follows them", _NEEDED
    return "", ""


def _has_own_code(content: dict[str, Any]) -> tuple[str, str]:
    if not content.get("auto_map") or content.get("model_type") in CONFIG_MAPPING:
        return "", ""
    return (
        f"it needs the code in its folder (auto_map, model type {content.get('model_type')}), which is never run",
        "Use a model that transformers knows by itself.",
    )


_PROBLEMS: tuple[Callable[[dict[str, Any]], tuple[str, str]], ...] = (_quantized, _encodes, _has_own_code)
"""Each says what is wrong with a config.json, and what to do; nothing if it finds nothing."""


def _load_config(path: Path) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
    except MemoryError:
        raise
    except Exception as error:  # The config of any model, from anywhere, may raise anything.
        raise _refusal(path, f"transformers cannot read its config ({why(error)})", _NEEDED) from error
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
        raise _refusal(index.parent, f"{index.name} cannot be read ({why(error)})", _COPY) from error


def _dtype_names(file: Path) -> list[str]:
    try:
        with safe_open(str(file), framework="pt") as weights:
            return [weights.get_slice(name).get_dtype() for name in weights.keys()]  # noqa: SIM118 - it is no dict
    except (OSError, SafetensorError) as error:
        raise _refusal(file.parent, f"{file.name} is damaged ({why(error)})", _COPY) from error
