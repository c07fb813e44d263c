"""Read a body that may be a stream.

A server decides by itself whether it streams: the header may say so, or only the first bytes. Events (`data: …`) and
JSON lines are both read; the raw text of a stream is not kept once its chunks are joined.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

import msgspec

from crashproof.rules.requests import JsonObject
from crashproof.teacher.client.wire.joined_chunks import JoinedChunks

__all__ = ["LONGEST_RAW_BYTES", "BodyReader", "StreamEnd"]

LONGEST_RAW_BYTES = 1 << 20
"""How much of a stream is kept to the letter, for the case that nothing in it can be understood."""

_STREAM_TYPES = ("event-stream", "ndjson", "jsonl", "json-seq", "json-lines", "stream+json")
_FIELD = re.compile(rb"(?:data|event|id|retry)?:")
_LINE_END = re.compile(r"\r\n|\n|\r(?=.)", re.DOTALL)
"""A carriage return at the very end may be half of a line end."""
_DONE = "[DONE]"
_BYTES_TO_TELL = 8
"""Enough to see a field's name and its colon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEnd:
    """A stream that is over, or was cut."""

    body: JsonObject
    """The same object that the server would have sent in one piece; empty if nothing could be understood."""
    is_complete: bool
    """Whether the stream said that the answer is complete."""
    has_answer: bool
    """Whether anything was generated in it."""
    is_foreign: bool = False
    """Whether it holds something that could not be understood."""


class BodyReader:
    """Takes the pieces of a body as they arrive."""

    def __init__(self, content_type: str) -> None:
        kind = content_type.lower()
        self.num_bytes = 0
        self._raw = bytearray()
        self._is_stream: bool | None = None
        if any(name in kind for name in _STREAM_TYPES):
            self._is_stream = True
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._rest = ""
        self._data: list[str] = []
        self._event = ""
        self._chunks = JoinedChunks()
        self._is_done = False
        self._is_damaged = False

    def feed(self, piece: bytes) -> None:
        """Take the next piece."""
        self.num_bytes += len(piece)
        if self._is_stream is None:
            self._raw += piece
            self._is_stream = _tell_stream(self._raw)
            if self._is_stream:
                self._read_lines(bytes(self._raw))
            return
        if not self._is_stream or len(self._raw) < LONGEST_RAW_BYTES:
            self._raw += piece
        if self._is_stream:
            self._read_lines(piece)

    @property
    def num_kept_bytes(self) -> int:
        """The length of `raw`."""
        return len(self._raw)

    @property
    def raw(self) -> bytes:
        """The body as it came; of a stream, its beginning."""
        return bytes(self._raw)

    def end_of_stream(self, *, is_cut: bool) -> StreamEnd | None:
        """What the stream adds up to; None if the body is none."""
        whole = self._object_in_one_piece(is_cut=is_cut)
        if whole is not None:
            chunks = JoinedChunks()
            chunks.add(whole)
            has_answer = chunks.has_answer
            return StreamEnd(body=whole, is_complete=True, has_answer=has_answer) if has_answer else None
        if not self._is_stream and not self._reads_as_lines():
            return None
        self._finish_lines(is_cut=is_cut)
        body = self._chunks.body()
        is_complete = self._is_done or self._chunks.is_finished
        is_whole = is_complete and not self._is_damaged and "error" not in body
        is_foreign = self._is_damaged or self._chunks.has_unknown
        return StreamEnd(body=body, is_complete=is_whole, has_answer=self._chunks.has_answer, is_foreign=is_foreign)

    def _object_in_one_piece(self, *, is_cut: bool) -> JsonObject | None:
        """The body, if a server declared one plain JSON object as a stream."""
        if is_cut or not self._is_stream or self.num_bytes > len(self._raw):
            return None
        whole = _object_in(self._raw.decode("utf-8", "replace"))
        return None if whole is None or JoinedChunks.knows(whole) else whole

    def _reads_as_lines(self) -> bool:
        """Whether a body that began as JSON turns out to be lines of chunks; if so, they are read."""
        first, newline, rest = self._raw.strip().partition(b"\n")
        chunk = _object_in(first.decode("utf-8", "replace")) if newline and rest.lstrip()[:1] == b"{" else None
        if chunk is None or not JoinedChunks.knows(chunk):
            return False
        self._is_stream = True
        self._read_lines(bytes(self._raw))
        return True

    def _read_lines(self, piece: bytes) -> None:
        *lines, self._rest = _LINE_END.split(self._rest + self._decoder.decode(piece))
        for line in lines:
            self._take_line(line)

    def _finish_lines(self, *, is_cut: bool) -> None:
        last = (self._rest + self._decoder.decode(b"", final=True)).rstrip("\r")
        self._rest = ""
        was_damaged = self._is_damaged
        if last:
            self._take_line(last)
        self._end_event()
        if is_cut:
            # The last line was cut: that is told by `is_cut` already.
            self._is_damaged = was_damaged

    def _take_line(self, line: str) -> None:
        if not line.strip():
            self._end_event()
        elif line.lstrip("\x1e \t").startswith("{"):
            self._take_data(line.lstrip("\x1e \t"))
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                self._data.append(value)
                self._end_if_whole()
            elif name == "event":
                self._event = value.strip()

    def _end_if_whole(self) -> None:
        """Some servers leave out the empty line between events."""
        text = "\n".join(self._data)
        if text.strip() == _DONE or _object_in(text) is not None:
            self._end_event()

    def _end_event(self) -> None:
        text, self._data = "\n".join(self._data).strip(), []
        if text:
            self._take_data(text)
        self._event = ""

    def _take_data(self, text: str) -> None:
        if text == _DONE:
            self._is_done = True
            return
        content = _object_in(text)
        if content is not None:
            self._chunks.add({"error": content} if self._is_bare_error(content) else content)
        elif self._event == "error":
            self._chunks.add({"error": {"message": text}})
        else:
            self._is_damaged = True

    def _is_bare_error(self, content: JsonObject) -> bool:
        return self._event == "error" and not {"error", "choices"} & content.keys()


def _tell_stream(start: bytes | bytearray) -> bool | None:
    """Whether a body begins as a stream of events; None while too little of it is there."""
    text = bytes(start).removeprefix(codecs.BOM_UTF8).lstrip()
    if _FIELD.match(text):
        return True
    return None if len(text) < _BYTES_TO_TELL and text[:1] not in (b"{", b"[", b"<") else False


def _object_in(text: str) -> JsonObject | None:
    try:
        content = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
