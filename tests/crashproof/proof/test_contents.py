from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from crashproof.proof.contents import contents_of

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")


def save(path: Path, weight: float, *, note: str = "") -> Path:
    """The same state in the form that a name asks for."""
    tensor = torch.full((2,), weight)
    if path.suffix == ".safetensors":
        safetensors_torch.save_file({"weight": tensor}, path, metadata={"note": note})
    elif path.suffix == ".npz":
        np.savez(path, weight=tensor.numpy())
    elif path.suffix == ".json":
        path.write_text(json.dumps({"weight": weight}))
    elif path.suffix == ".bin":
        path.write_bytes(b"no archive" + bytes([int(weight)]))
    else:
        torch.save({"weight": tensor}, path)
    return path


@pytest.mark.parametrize(
    "name, expected",
    [
        ("c.pt", "weight"),
        ("c.ckpt", "weight"),
        ("c.safetensors", "weight"),
        ("c.npz", "weight"),
        ("c.json", "weight"),
        ("c.bin", "c.bin"),
    ],
)
def test_values_are_digested_by_name(name, expected, tmp_path):
    one, two = contents_of(save(tmp_path / name, 1)), contents_of(save(tmp_path / name, 2))

    assert [expected] == list(one) == list(two)
    assert one != two
    assert one == contents_of(save(tmp_path / name, 1, note="another"))


def test_a_folder_names_its_files_and_leaves_out_notes(tmp_path):
    folder = tmp_path / "checkpoint"
    (folder / "part").mkdir(parents=True)
    save(folder / "part" / "model.safetensors", 1)
    save(folder / "optimizer.pt", 1)
    (folder / "part.distcp").write_bytes(b"shard")
    (folder / "trainer_state.json").write_text("{}")

    assert ["optimizer.pt.weight", "part.distcp", "part/model.safetensors.weight"] == sorted(contents_of(folder))


@pytest.mark.parametrize("text, expected", [("[1, 2]", {"content.0": "1", "content.1": "2"}), ("no json", None)])
def test_any_json_is_read(text, expected, tmp_path):
    path = tmp_path / "c.json"
    path.write_text(text)

    assert (expected or ["c.json"]) == (contents_of(path) if expected else list(contents_of(path)))


def test_code_in_a_checkpoint_is_not_executed(tmp_path):
    class Harmful:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'harm')!r}, 'w')",)

    torch.save({"x": Harmful()}, tmp_path / "c.pt")

    assert ["c.pt"] == list(contents_of(tmp_path / "c.pt"))
    assert not (tmp_path / "harm").exists()
