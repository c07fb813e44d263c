"""Which files of a model's folder can decide what is loaded from it."""

from __future__ import annotations

from pathlib import PurePosixPath

__all__ = ["can_decide"]

_DOCUMENTS = frozenset({".gif", ".jpeg", ".jpg", ".md", ".pdf", ".png", ".rst", ".svg", ".webp"})
_OF_OTHER_LOADERS = frozenset({".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pth", ".tflite"})
_LEGAL = frozenset({"COPYING", "LICENCE", "LICENSE", "NOTICE", "USE_POLICY"})


def can_decide(name: str) -> bool:
    """Whether a file, by its name relative to the folder, is one that a loader of models and tokenizers may read.

    Downloads leave hidden files with times in them (`.cache/huggingface`), and copies may lack documents.
    """
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts) or path.stem.upper() in _LEGAL:
        return False
    return path.suffix.lower() not in _DOCUMENTS | _OF_OTHER_LOADERS
