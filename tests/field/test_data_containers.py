"""Files and folders as people keep them: read record by record, or refused with the file and the place."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from crashproof.data_files.reader import read_records
from crashproof.distillation.data.text_data import load_source
from crashproof.distillation.recipes.kd import KD
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.distillation.settings.section import validated
from crashproof.distillation.training.lessons import split_source
from crashproof.errors import ConfigError, DataError, MissingExtra
from crashproof.json_lines import MAX_LINE_BYTES

ROWS = [{"text": "The quick brown fox."}, {"text": "Grüße, 世界 👋"}, {"text": "Two lines:\nthis is the second."}]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"Number {number}?"},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "One."},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    }
    for number in range(3)
]


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def table(rows: list[Any], delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: list[Any]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


def arrow(rows: list[Any], *, as_stream: bool = True) -> bytes:
    content = pyarrow.Table.from_pylist(rows)
    sink = pyarrow.BufferOutputStream()
    new = pyarrow.ipc.new_stream if as_stream else pyarrow.ipc.new_file
    with new(sink, content.schema) as writer:
        writer.write_table(content, max_chunksize=1)
    return bytes(sink.getvalue())


def by_column(rows: list[Any]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def read(path: Path | list[Path], **settings: Any) -> list[str]:
    return [sample["text"] for sample in load_source(DataConfig(path=path, **settings)).samples]


TEXTS = [row["text"] for row in ROWS]
WRITTEN = {
    "a.jsonl": lines(ROWS),
    "a.ndjson": lines(ROWS),
    "A.JSONL": lines(ROWS),
    "without-a-suffix": lines(ROWS),
    "bom.jsonl": b"\xef\xbb\xbf" + lines(ROWS),
    "crlf.jsonl": lines(ROWS).replace(b"\n", b"\r\n"),
    "blank.jsonl": b"\n \n" + lines(ROWS).replace(b"\n", b"\n\n"),
    "no-last-line-break.jsonl": lines(ROWS).rstrip(),
    "a.jsonl.gz": gzip.compress(lines(ROWS)),
    "members.jsonl.gz": b"".join(gzip.compress(lines([row])) for row in ROWS),
    "a.jsonl.zst": zstd(lines(ROWS)),
    "a.jsonl.bz2": bz2.compress(lines(ROWS)),
    "a.jsonl.xz": lzma.compress(lines(ROWS)),
    "gzip-by-content.jsonl": gzip.compress(lines(ROWS)),
    "array.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "array.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "data.json": json.dumps({"version": "1", "data": ROWS}, indent=1).encode(),
    "columns.json": json.dumps(by_column(ROWS)).encode(),
    "pandas.json": json.dumps({"text": dict(enumerate(TEXTS))}).encode(),
    "rows-of-a-server.json": json.dumps({"rows": [{"row_idx": 0, "row": row} for row in ROWS]}).encode(),
    "lines-after-all.json": lines(ROWS),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "a.csv": table(ROWS, ","),
    "bom.csv": b"\xef\xbb\xbf" + table(ROWS, ","),
    "a.tsv": table(ROWS, "\t"),
    "a.csv.gz": gzip.compress(table(ROWS, ",")),
    "a.parquet": parquet(ROWS),
    "a.arrow": arrow(ROWS),
    "feather.arrow": arrow(ROWS, as_stream=False),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_each_container_has_the_same_records_in_the_same_order(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(WRITTEN[name])

    assert TEXTS == read(tmp_path / name)


@pytest.mark.parametrize("name, write", [("c.parquet", parquet), ("c.arrow", arrow)])
def test_tables_fill_nothing_in_where_a_message_has_no_such_field(
    tmp_path: Path, name: str, write: Callable[..., bytes]
) -> None:
    (tmp_path / name).write_bytes(write(CHATS))
    (tmp_path / "c.jsonl").write_bytes(lines(CHATS))

    read_from = [load_source(DataConfig(path=tmp_path / each)).samples for each in (name, "c.jsonl")]

    for sample in read_from[0]:
        del sample["_place"]
    assert read_from[1] == read_from[0]


def test_a_single_conversation_in_a_json_file_is_one_record_and_no_columns(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(CHATS[0], indent=2))

    assert 1 == len(load_source(DataConfig(path=tmp_path / "one.json")).samples)


def test_columns_of_conversations_are_rows(tmp_path: Path) -> None:
    (tmp_path / "many.json").write_text(json.dumps(by_column(CHATS)))

    assert 3 == len(load_source(DataConfig(path=tmp_path / "many.json")).samples)


DAMAGED = {
    "torn.jsonl": (lines(ROWS)[:-9], "line 3: it is not valid JSON .*The file ends inside this line"),
    "torn.jsonl.gz": (gzip.compress(lines(ROWS))[:-12], "its compressed content is damaged or ends early"),
    "torn.jsonl.zst": (zstd(lines(ROWS * 50))[:-9], "its compressed content is damaged or ends early"),
    "followed.jsonl.zst": (zstd(lines(ROWS)) + b"more", "damaged or ends early .something else follows a frame"),
    "deep.jsonl": (b'{"text": 1, "a": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}", 'line 1: it needs "text"'),
    "torn.jsonl.xz": (lzma.compress(lines(ROWS))[:-9], "its compressed content is damaged or ends early"),
    "torn.jsonl.bz2": (bz2.compress(lines(ROWS))[:-9], "its compressed content is damaged or ends early"),
    "flipped.jsonl.gz": (
        (lambda c: c[:20] + bytes([c[20] ^ 255]) + c[21:])(gzip.compress(lines(ROWS))),
        "damaged or ends early|not valid",
    ),
    "torn.parquet": (parquet(ROWS)[:-5], "it cannot be read as Parquet"),
    "torn.arrow": (arrow(ROWS)[:-300], "it cannot be read as Arrow"),
    "text.parquet": (lines(ROWS), "it cannot be read as Parquet"),
    "torn.json": (json.dumps(ROWS).encode()[:-9], "torn.json: it is not valid JSON"),
    "inside.json": (json.dumps([*ROWS, 7], indent=1).encode(), "line 11: it is not a JSON object"),
    "twice.jsonl": (b'{"text": "a", "text": "b"}\n', 'line 1: an object in it has the key "text" twice'),
    "twice-inside.jsonl": (b'{"text": "a", "meta": [{"a": 1, "a": ":x"}]}\n', 'has the key "a" twice'),
    "nan.jsonl": (lines(ROWS) + b'{"text": "a", "score": NaN}\n', "line 4: it is not valid JSON .*NaN"),
    "surrogate.jsonl": (rb'{"text": "\ud83d"}', "line 1: it is not valid JSON .*lone surrogate"),
    "latin.jsonl": (
        lines(ROWS[:1]) + '{"text": "Grüße"}\n'.encode("latin-1"),
        "line 2: .*UTF-8 .*at byte 12, byte 45 of",
    ),
    "latin.csv": ("text\nGrüße\n".encode("latin-1"), "line 2: it is not valid UTF-8 .*at byte 7 of the file"),
    "array.jsonl": (json.dumps(ROWS).encode(), "line 1: it is not a JSON object.* belongs in a file named .json"),
    "cells.csv": (b"text,more\na,b\na,b,c\n", "line 3: its row has 3 cells, and the header 2"),
    "names.csv": (b"text,text\na,b\n", 'line 1: two columns are named "text"'),
    "quotes.csv": (b'text\n"a" b\n', "line 2: it is not a table"),
    "zip.jsonl": (b"PK\x03\x04rest", "it is a zip archive"),
    "lz4.jsonl": (b"\x04\x22\x4d\x18rest", "it is compressed with LZ4"),
    "empty.jsonl": (b"", "it contains no samples"),
    "empty.json": (b" \n", "it contains no samples"),
    "empty.csv": (b"", "it contains no samples"),
    "empty-array.json": (b"[]", "it contains no samples"),
    "empty.jsonl.gz": (gzip.compress(b""), "it contains no samples"),
}
DAMAGED["utf-16.jsonl"] = (("\ufeff" + lines(ROWS).decode()).encode("utf-16-le"), "line 1: it is UTF-16")


@pytest.mark.parametrize("num_lost", [1, 3, 4, 7, 20, 60, -1])
def test_a_zstd_file_that_is_cut_anywhere_is_never_taken_as_complete(tmp_path: Path, num_lost: int) -> None:
    content = zstd(lines(ROWS)) + zstd(lines(ROWS * 1000))
    (tmp_path / "a.jsonl.zst").write_bytes(
        content[:-num_lost] if num_lost > 0 else content[: len(zstd(lines(ROWS))) + 5]
    )

    with pytest.raises(DataError, match="its compressed content is damaged or ends early"):
        read(tmp_path / "a.jsonl.zst")


def test_several_zstd_frames_and_what_may_be_skipped_between_them_are_one_file(tmp_path: Path) -> None:
    skippable = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(lines(ROWS[:1])) + skippable + zstd(lines(ROWS[1:])))

    assert TEXTS == read(tmp_path / "a.jsonl.zst")


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_names_the_file_and_the_place(tmp_path: Path, name: str) -> None:
    content, reason = DAMAGED[name]
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=reason) as caught:
        load_source(DataConfig(path=tmp_path / name))

    assert str(tmp_path / name) in str(caught.value)


def test_errors_in_a_pretty_array_name_the_line_on_which_the_record_begins(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([*ROWS, {"txet": "a"}], indent=2))

    with pytest.raises(DataError, match=r"a\.json, line 11: it needs \"text\""):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("name, unit", [("a.parquet", "row 2"), ("a.csv", "line 4"), ("columns.json", "record 2")])
def test_errors_in_tables_name_the_row(tmp_path: Path, name: str, unit: str) -> None:
    rows = [{"question": "a\nb", "answer": "c"}, {"question": "d", "answer": ""}]
    write = {
        ".parquet": parquet,
        ".csv": lambda rows: table(rows, ","),
        ".json": lambda rows: json.dumps(by_column(rows)).encode(),
    }
    content = write[Path(name).suffix]([row if row["answer"] else {"question": "d", "answer": None} for row in rows])
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=f"{name}, {unit}: it needs"):
        load_source(DataConfig(path=tmp_path / name))


def test_a_decompression_bomb_is_bounded_by_the_longest_line(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(5):
            file.write(b" " * (MAX_LINE_BYTES // 4))

    with pytest.raises(DataError, match=r"line 1: it has more than 268,435,456 bytes"):
        list(read_records(path))


def test_a_large_compressed_file_is_read_a_line_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(400):
            file.write(b'{"text": "' + b"x" * 100_000 + b'"}\n')

    tracemalloc.start()
    num_records = sum(1 for _ in read_records(path))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert 400 == num_records
    assert most < 8 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def test_a_folder_is_read_in_the_order_of_names_and_what_is_skipped_is_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "part-2.parquet").write_bytes(parquet([{"text": "b"}]))
    (folder / "part-1.jsonl.gz").write_bytes(gzip.compress(lines([{"text": "a"}])))
    (folder / "part-10.json").write_bytes(b"")
    (folder / ".hidden.jsonl").write_bytes(b"not JSON")
    (folder / "_SUCCESS").write_bytes(b"")
    (folder / "README.md").write_text("# Data")
    (folder / "more").mkdir()

    assert ["a", "b"] == read(folder)
    assert "skipping .hidden.jsonl, README.md, _SUCCESS, more: " in caplog.text
    assert "empty files: part-10.json." in caplog.text


def test_a_malformed_line_in_a_folder_names_its_own_file(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(lines(ROWS))
    (folder / "b.jsonl").write_bytes(lines([ROWS[0], {"txet": "a"}]))

    with pytest.raises(DataError, match=r"b\.jsonl, line 2: it needs"):
        read(folder)


def test_a_folder_without_data_is_refused(folder: Path) -> None:
    (folder / "README.md").write_text("# Data")

    with pytest.raises(DataError, match="the folder contains no data files"):
        read(folder)


def test_splits_in_one_folder_are_not_mixed_in_silence(folder: Path) -> None:
    (folder / "train-00000-of-00001.parquet").write_bytes(parquet([{"text": "learn"}]))
    (folder / "test-00000-of-00001.parquet").write_bytes(parquet([{"text": "held out"}]))

    with pytest.raises(DataError, match=r"its files belong to several splits: test, train\. Name one"):
        read(folder)
    assert ["learn"] == read(folder, split="train")
    assert ["held out"] == read(folder, split="test")
    with pytest.raises(DataError, match="the folder contains no data files"):
        read(folder, split="validation")


def save_dataset(folder: Path, texts: list[str], **state: Any) -> None:
    """As `datasets.Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{len(texts):05}.arrow" for number in range(len(texts))]
    for name, text in zip(names, texts, strict=True):
        (folder / name).write_bytes(arrow([{"text": text}]))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"text": {"dtype": "string"}}}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], **state}))


def test_a_dataset_that_was_saved_to_disk_is_read_in_its_own_order(tmp_path: Path) -> None:
    save_dataset(tmp_path / "saved", ["a", "b", "c"])

    assert ["a", "b", "c"] == read(tmp_path / "saved")


def test_a_saved_dict_of_datasets_needs_the_name_of_a_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_dataset(tmp_path / "saved" / split, [split])
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')

    with pytest.raises(DataError, match=r"it has several splits: train, test\. Name one"):
        read(tmp_path / "saved")
    assert ["test"] == read(tmp_path / "saved", split="test")
    with pytest.raises(DataError, match="it has no split validation: train, test"):
        read(tmp_path / "saved", split="validation")


@pytest.mark.parametrize(
    "state, reason",
    [
        ({"_indices_data_files": [{"filename": "i.arrow"}]}, "saved with an indices mapping"),
        ({"_data_files": [{"filename": "../../etc/x.arrow"}]}, "it names files outside its folder"),
        ({"_data_files": 7}, "it is not as `datasets` writes it"),
    ],
    ids=["indices", "outside", "malformed"],
)
def test_a_saved_dataset_that_would_be_read_wrongly_is_refused(tmp_path: Path, state: Any, reason: str) -> None:
    save_dataset(tmp_path / "saved", ["a"], **state)

    with pytest.raises(DataError, match=reason):
        read(tmp_path / "saved")


def test_several_paths_are_read_in_the_order_given(tmp_path: Path) -> None:
    paths = [tmp_path / "b.jsonl", tmp_path / "a.csv"]
    paths[0].write_bytes(lines([{"text": "first"}]))
    paths[1].write_bytes(table([{"text": "second"}], ","))

    assert ["first", "second"] == read(paths)
    with pytest.raises(ConfigError, match="an empty list names no file"):
        validated(DataConfig, {"path": []})


def test_the_digest_of_one_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(ROWS))

    assert hashlib.sha256(lines(ROWS)).hexdigest() == load_source(DataConfig(path=path)).sha256


def test_the_digest_changes_with_order_content_and_what_is_learned(tmp_path: Path) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_bytes(lines(ROWS[:1]))
    b.write_bytes(lines(ROWS[1:]))

    digests = [load_source(DataConfig(path=paths)).sha256 for paths in (a, b, [a, b], [b, a])]
    digests.append(load_source(DataConfig(path=a, learn_reasoning=True)).sha256)
    digests.append(load_source(DataConfig(path=a, preferences="chosen")).sha256)

    assert 6 == len(set(digests))


@pytest.mark.parametrize(
    "name, hidden, extra",
    [
        ("a.parquet", ["pyarrow"], "parquet"),
        ("a.arrow", ["pyarrow"], "parquet"),
        ("a.jsonl.zst", ["pyarrow", "zstandard"], "zstd"),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    tmp_path: Path, name: str, hidden: list[str], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if extra == "zstd" and sys.version_info >= (3, 14):
        pytest.skip("Python reads zstd itself")
    (tmp_path / name).write_bytes(WRITTEN[name])
    for module in hidden:
        # The import system's own way to say that a module cannot be found.
        monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingExtra, match=rf"'{extra}' is not installed.*pip install"):
        read(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.parquet", "a.json.gz", "a.csv"):
        with pytest.raises(DataError, match=rf"{name}: it cannot be read"):
            read(tmp_path / name)


def test_a_split_for_evaluation_is_read_from_the_same_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_dataset(tmp_path / "saved" / split, [f"{split} {number}" for number in range(2)])
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    config = KdConfig(data=DataConfig(path=tmp_path / "saved", split="train", eval_split="test"))

    source = KD.load(config)
    learned, held_out = split_source(KD, config, source)

    assert held_out is not None
    assert ["train 0", "train 1"] == [sample["text"] for sample in learned.samples]
    assert ["test 0", "test 1"] == [sample["text"] for sample in held_out.samples]
