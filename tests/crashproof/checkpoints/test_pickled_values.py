"""What a pickle holds, read without loading it."""

from __future__ import annotations

import io
import pickle
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import pytest
from foreign_checkpoints import write_state

from crashproof.checkpoints.foreign import pickled_values
from crashproof.checkpoints.foreign.pickled_values import (
    UnreadablePickle,
    attributes_of,
    read_pickle,
    read_saved_values,
)


class Odd:
    """An object with a state that is no dict."""

    def __getstate__(self) -> object:
        return 5

    def __setstate__(self, state: object) -> None:
        self.state = state


class Names(list[str]):
    """A list of another class."""


def read(value: object, protocol: int = 2) -> Any:
    return read_pickle(io.BytesIO(pickle.dumps(value, protocol=protocol)))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_out_as_they_are(protocol: int) -> None:
    value = {"a": [1, 2.5, None, True], "b": ("x", b"y"), "c": {"d": {"e": 10**30}}, "f": OrderedDict(g=1)}

    assert value == read(value, protocol)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_dicts_and_objects_of_any_class_keep_what_they_hold(protocol: int) -> None:
    filled = defaultdict(list, {"step": [7]})
    found = read(
        {"filled": filled, "args": Namespace(lr=0.1), "rest": [Counter("aab"), deque([1]), {1, 2}]}, protocol
    )

    assert {"step": [7]} == found["filled"]
    assert 0.1 == attributes_of(found["args"])["lr"]
    assert {} == attributes_of(5)


@pytest.mark.parametrize("value", [Odd(), Names("ab"), {"x": Path("y")}, range(3), type(None), print, 1j])
def test_what_is_no_plain_value_is_a_stand_in_and_does_nothing(value: object) -> None:
    assert read([value, 5])[1] == 5


@pytest.mark.parametrize("number", [7, 2.5])
@pytest.mark.parametrize("kind", ["int64", "int32", "float64", "float32", "uint64"])
def test_numbers_of_numpy_are_numbers(kind: str, number: float) -> None:
    numpy = pytest.importorskip("numpy")
    scalar = getattr(numpy, kind)(number)

    assert scalar == read({"step": scalar})["step"]
    assert scalar == read({"step": scalar}, 4)["step"]


def test_kinds_of_numpy_that_hold_no_number_are_stand_ins() -> None:
    numpy = pytest.importorskip("numpy")

    assert 5 == read([numpy.bool_(True), numpy.datetime64("2026-01-01"), numpy.ones(3), 5])[-1]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("float32", 9.0), ("float64", 9.0), ("int64", 9.0), ("int32", 9.0), ("uint8", 9.0), ("bfloat16", None)],
)
def test_a_tensor_of_one_element_is_its_number(tmp_path: Path, kind: str, expected: float | None) -> None:
    torch = pytest.importorskip("torch")
    tensors = torch.arange(10).to(getattr(torch, kind))
    torch.save({"step": tensors[9], "all": tensors}, tmp_path / "state.pt")
    found = read_saved_values(tmp_path / "state.pt")["step"]  # type: ignore[index]  # a dict was saved.

    assert expected == (found if isinstance(found, float) else None)


def test_an_archive_without_a_pickle_says_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme", "text")

    with pytest.raises(UnreadablePickle, match=r"torch\.save did not write"):
        read_saved_values(tmp_path / "x.pt")


def test_a_flipped_bit_in_the_pickle_of_an_archive_is_found(tmp_path: Path) -> None:
    path = write_state(tmp_path / "x.pt", {"name": "weights", "iter_num": 5})
    content = bytearray(path.read_bytes())
    content[content.index(b"weights")] ^= 1
    path.write_bytes(content)

    with pytest.raises(UnreadablePickle, match="damaged or cut off"):
        read_saved_values(path)


@pytest.mark.parametrize(
    "value", [b"x" * 200, "x" * 200, list(range(200))], ids=["one read", "text", "many small reads"]
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_pickle_fills_the_memory(monkeypatch: pytest.MonkeyPatch, value: object, protocol: int) -> None:
    monkeypatch.setattr(pickled_values, "_MAX_BYTES", 100)

    with pytest.raises(UnreadablePickle, match="more than 100 bytes"):
        read(value, protocol)
