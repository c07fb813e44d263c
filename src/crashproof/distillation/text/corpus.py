"""Built-in corpus: text that ships with CPython."""

from __future__ import annotations

import hashlib
from pydoc_data.topics import topics

__all__ = ["builtin_documents", "text_hash"]


def builtin_documents() -> list[str]:
    """The language reference as `help()` shows it: some 465 kB of prose; it differs between Python versions."""
    return [str(topics[name]) for name in sorted(topics)]


def text_hash(documents: list[str]) -> str:
    """SHA-256 over all documents, each with its length before it."""
    digest = hashlib.sha256()
    for document in documents:
        content = document.encode()
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    return digest.hexdigest()
