"""The `config.json` of a model's folder.

It is read without PyTorch, so that a folder that cannot be used is refused before anything long is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from crashproof.errors import ConfigError

__all__ = ["COPY_AGAIN", "NEEDED", "read_config_file", "refusal", "why"]

COPY_AGAIN = "Copy the folder again, or save the model again with save_pretrained."
NEEDED = "Pass the folder of a causal language model, as save_pretrained writes it."
_OF_ENCODERS = ("ForMaskedLM", "ForPreTraining")


def read_config_file(path: Path) -> dict[str, Any]:
    """Read what a local `transformers` folder says of its model.

    Raises:
        ConfigError: There is no such folder, or its model is one that cannot be trained here; says why.
    """
    content = _read(path)
    for problem_with in (_quantized, _encodes):
        problem, hint = problem_with(content)
        if problem:
            raise refusal(path, problem, hint)
    return content


def refusal(path: Path, problem: str, hint: str) -> ConfigError:
    """The error that refuses a folder, with the reason and what to do."""
    return ConfigError(f"{path} holds no causal language model that can be used: {problem}.", hint=hint)


def why(error: BaseException) -> str:
    """The first line of a foreign error, short enough for one line of ours."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise ConfigError(
            f"{path} is not a folder.", hint="Pass a local transformers model folder; nothing is downloaded."
        )
    if (path / "adapter_config.json").is_file():
        raise refusal(
            path,
            "it is an adapter of PEFT, which needs its base model",
            "Merge it first (merge_and_unload, save_pretrained), and pass that folder.",
        )
    file = path / "config.json"
    try:
        content = msgspec.json.decode(file.read_bytes())
    except FileNotFoundError as error:
        raise refusal(path, "config.json is missing", NEEDED) from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise refusal(path, f"config.json cannot be read ({why(error)})", COPY_AGAIN) from error
    if not isinstance(content, dict):
        raise refusal(path, "config.json is not an object", COPY_AGAIN)
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
        return "it is an encoder with a decoder", NEEDED
    names = [str(name) for name in content.get("architectures") or ()]
    if names and all(name.endswith(_OF_ENCODERS) for name in names):
        return f"it is an encoder ({names[0]}), whose positions see what follows them", NEEDED
    return "", ""
