"""The documents are correct: their Python runs, their links resolve, their records are what the library writes."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from crashproof.records.curves import CoarseBlock, CurveBlock
from crashproof.records.events import Event
from crashproof.records.lines.checksummed_line import is_intact
from crashproof.records.lines.codec import decode, encode
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.requests import AnswerRecord, RequestLine
from crashproof.records.snapshots import Manifest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])
FORMAT = ROOT / "docs" / "FORMAT.md"

FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#{1,6}\s+(?P<text>.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of Python in a document, with the ones that it continues."""

    path: Path
    line: int
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}"


def python_blocks(path: Path) -> list[Block]:
    """Each block stands alone, except those opened with ```python continued."""
    text = path.read_text()
    blocks: list[Block] = []
    for fence in FENCE.finditer(text):
        words = fence["info"].split()
        if words[:1] != ["python"]:
            continue
        before = blocks[-1].parts if words[1:] == ["continued"] else ()
        blocks.append(Block(path, text.count("\n", 0, fence.start()) + 1, (*before, fence["content"])))
    return blocks


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, spelled as GitHub spells them."""
    found: dict[str, int] = {}
    names = set()
    for heading in HEADING.finditer(FENCE.sub("", path.read_text())):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading["text"]).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        number = found.get(name, 0)
        found[name] = number + 1
        names.add(f"{name}-{number}" if number else name)
    return names


def broken_links(path: Path) -> list[str]:
    broken = []
    for link in LINK.finditer(FENCE.sub("", path.read_text())):
        target, _, anchor = link["target"].partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link["target"])
    return broken


def checksummed_lines(path: Path) -> list[bytes]:
    fences = [fence["content"] for fence in FENCE.finditer(path.read_text()) if fence["info"].strip() == "json"]
    lines = [line.encode() for content in fences for line in content.splitlines(keepends=True)]
    return [line for line in lines if b',"crc":"' in line]


@pytest.mark.parametrize("block", [block for path in DOCUMENTS for block in python_blocks(path)], ids=str)
def test_a_block_of_python_runs(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if any(re.search(r"^\s*(import|from) torch\b", part, re.MULTILINE) for part in block.parts):
        pytest.importorskip("torch")
    module = ModuleType("document")
    # Classes defined in the block look their module up by name.
    monkeypatch.setitem(sys.modules, module.__name__, module)

    for part in block.parts:
        exec(compile(part, str(block), "exec"), module.__dict__)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_resolves(path: Path) -> None:
    assert [] == broken_links(path)


def test_the_worked_example_is_what_the_library_writes() -> None:
    example = b'{"v":1,"step":7,"loss":2.5,"crc":"251c13ec"}\n'

    assert example in checksummed_lines(FORMAT)
    assert example == encode({"v": 1, "step": 7, "loss": 2.5})


def test_every_line_of_the_format_page_has_a_correct_checksum() -> None:
    lines = checksummed_lines(FORMAT)

    assert len(lines) > 15
    assert [] == [line for line in lines if not is_intact(line)]


@pytest.mark.parametrize(
    "kind", [MetricsSnapshot, AnswerRecord, CurveBlock, CoarseBlock, Manifest], ids=lambda kind: kind.__name__
)
def test_a_line_of_the_format_page_is_what_the_library_writes(kind: type) -> None:
    decoder = msgspec.json.Decoder(kind)
    num_read = 0
    for line in checksummed_lines(FORMAT):
        try:
            record = decode(line, decoder)
        except msgspec.ValidationError:
            continue
        if kind is CurveBlock and b'"blocks_offset":' in line:
            # A coarse block has all that a block has.
            continue
        num_read += 1
        assert line == encode(record)

    assert num_read


def test_the_format_page_shows_every_kind_of_event_and_of_request_line() -> None:
    decoder: msgspec.json.Decoder[Event | RequestLine] = msgspec.json.Decoder(Event | RequestLine)
    lines = [line for line in checksummed_lines(FORMAT) if line.startswith(b'{"event":')]
    records = [decode(line, decoder) for line in lines]

    assert lines == [encode(record) for record in records]
    assert {*Event.__args__, *RequestLine.__args__} == {type(record) for record in records}


def test_the_format_page_shows_a_manifest_of_captured_logits() -> None:
    pytest.importorskip("torch")
    from crashproof.distillation.data.captured_folder import CaptureManifest

    lines = [line for line in checksummed_lines(FORMAT) if b'"captured_from":' in line]

    assert lines == [encode(msgspec.json.decode(line, type=CaptureManifest)) for line in lines]
    assert lines
