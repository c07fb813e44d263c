from __future__ import annotations

import msgspec
import pytest

from crashproof.records.lines.codec import decode, encode
from crashproof.records.lines.lazy_decoder import LazyDecoder
from crashproof.records.snapshots import JournalMark


def test_it_decodes_like_the_decoder_that_it_stands_for() -> None:
    mark = JournalMark(num_bytes=3, num_lines=1)
    decoder = LazyDecoder[JournalMark](JournalMark)

    assert mark == decoder.decode(msgspec.json.encode(mark)) == decode(encode(mark), decoder)
    assert JournalMark is decoder.type


def test_it_refuses_what_is_of_another_kind() -> None:
    with pytest.raises(msgspec.ValidationError):
        LazyDecoder[JournalMark](JournalMark).decode(b'{"num_bytes": "three"}')
