"""The text to train on.

Without a path it is the text that ships inside CPython (`pydoc_data.topics`, some 465 kB of prose); its hash is
recorded with the run, for it differs between versions of Python. A path leads to JSON lines of three shapes:
`{"text"}`, `{"prompt", "teacher_text"}` and `{"messages"}`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated, Any

from pydantic import Field

from holdfast.distillation.section import Section
from holdfast.errors import DataError

__all__ = ["Answered", "Conversation", "DataConfig", "Document", "PlainText", "content_sha256", "read_documents"]

_SHAPES = 'Each line is {"text": …}, {"prompt": …, "teacher_text": …} or {"messages": [{"role": …, "content": …}]}.'
_SHOWN_CHARACTERS = 60
_BLOCK_BYTES = 1 << 20


class DataConfig(Section):
    """Which text, and how it is cut."""

    path: Path | None = None
    """JSON lines; absent: the text inside CPython."""
    seq_length: Annotated[int, Field(ge=2)] = 128
    """Tokens of one sample; longer ones are cut."""
    tokenizer: Path | None = None
    """A folder with a tokenizer; absent: the teacher's, the student's, or one trained on the text."""
    tokenizer_vocab_size: Annotated[int, Field(ge=258)] = 1024
    """Of the one trained on the text: 256 bytes, two special tokens, and merges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainText:
    """Every token is learned."""

    text: str

    def texts(self) -> list[str]:
        """What a tokenizer can learn from."""
        return [self.text]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The answer is learned, the prompt is given."""

    prompt: str
    teacher_text: str

    def texts(self) -> list[str]:
        """What a tokenizer can learn from."""
        return [self.prompt, self.teacher_text]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What the assistant says is learned, the rest is given."""

    messages: list[dict[str, str]]
    """Each with `role` and `content`."""

    def texts(self) -> list[str]:
        """What a tokenizer can learn from."""
        return [message["content"] for message in self.messages]


Document = PlainText | Answered | Conversation


def content_sha256(path: Path | None) -> str:
    """SHA-256 of the data, as it identifies a run.

    Raises:
        DataError: there is no such file.
    """
    if path is None:
        return hashlib.sha256(_text_inside_python().encode()).hexdigest()
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def read_documents(path: Path | None) -> Iterator[Document]:
    """Every document, in the order of the file; blank lines are passed over.

    Raises:
        DataError: the file is missing, or a line is malformed; names the line.
    """
    if path is None:
        yield PlainText(text=_text_inside_python())
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error
    with file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _document(line, path, number)


def _text_inside_python() -> str:
    return "\n".join(topics[name] for name in sorted(topics))


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(path, f"it cannot be read ({error.strerror})", hint="Set data.path to a file of JSON lines.")


def _document(line: bytes, path: Path, number: int) -> Document:
    try:
        content = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(path, "it is not UTF-8 text", line=number) from error
    except json.JSONDecodeError as error:
        shown = line.decode("utf-8").strip()[:_SHOWN_CHARACTERS]
        raise DataError(path, f"it is no JSON ({error.msg}): {shown}", line=number) from error
    if not isinstance(content, dict):
        raise DataError(path, f"it is a {type(content).__name__}, no object", line=number, hint=_SHAPES)
    try:
        return _of_known_shape(content)
    except ValueError as error:
        raise DataError(path, str(error), line=number, hint=_SHAPES) from error


def _of_known_shape(content: dict[str, Any]) -> Document:
    if "messages" in content:
        return _conversation(content["messages"])
    if "prompt" in content or "teacher_text" in content:
        return Answered(prompt=_text_of(content, "prompt"), teacher_text=_text_of(content, "teacher_text", least=1))
    if "text" in content:
        return PlainText(text=_text_of(content, "text", least=1))
    raise ValueError(f"none of its keys is known: {', '.join(map(repr, content)) or 'it has none'}")


def _conversation(messages: Any) -> Conversation:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("'messages' is no list of objects")
    turns = [
        {"role": _text_of(message, "role", least=1), "content": _text_of(message, "content")} for message in messages
    ]
    if not any(turn["role"] == "assistant" and turn["content"] for turn in turns):
        raise ValueError("no message of it is an answer: none has the role 'assistant' and some content")
    return Conversation(messages=turns)


def _text_of(content: dict[str, Any], name: str, *, least: int = 0) -> str:
    value = content.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is missing" if name not in content else f"{name!r} is no text")  # noqa: TRY004
    if len(value) < least:
        raise ValueError(f"{name!r} is empty")
    return value
