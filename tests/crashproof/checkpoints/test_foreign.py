from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from foreign_checkpoints import write_accelerate, write_archive, write_hugging_face, write_safetensors

from crashproof.checkpoints.foreign.inspection import Finding, inspect
from crashproof.checkpoints.foreign.placing import Candidate
from crashproof.checkpoints.foreign.survey import survey


def found(path: Path) -> Finding:
    (candidate,) = [each for each in survey(path.parent).candidates if each.path == path]
    return inspect(candidate)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint_1000.pt", 1000),
        ("checkpoint-1000.pt", 1000),
        ("checkpoint1000.pth", 1000),
        ("ckpt_00020.ckpt", 20),
        ("step_7.safetensors", 7),
        ("step=7.bin", 7),
        ("epoch=3-step=400.ckpt", 400),
        ("epoch=3-step=400-v1.ckpt", 400),
        ("checkpoint_9.json", 9),
    ],
)
def test_a_file_named_after_a_step_is_a_candidate(tmp_path: Path, name: str, step: int) -> None:
    (tmp_path / name).write_bytes(b"{}")

    assert [Candidate(step=step, path=tmp_path / name)] == survey(tmp_path).candidates


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint.pt",
        "checkpoint_1000.pt.tmp",
        ".checkpoint_1000.pt.crashproof-partial",
        "tmp-checkpoint-1000",
        "checkpoint_1000",
        "checkpoint_best.pt",
        "model_1000.pt",
        "checkpoint_1000.txt",
        f"checkpoint_{10**30}.pt",
    ],
)
def test_other_files_are_no_candidates(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{}")

    assert [] == survey(tmp_path).candidates


def test_candidates_are_sorted_by_step(tmp_path: Path) -> None:
    for name in ("checkpoint_20.pt", "checkpoint_3.pt", "checkpoint_100.pt"):
        (tmp_path / name).write_bytes(b"weights")
    (tmp_path / "checkpoint-20").mkdir()

    assert ["checkpoint_3.pt", "checkpoint-20", "checkpoint_20.pt", "checkpoint_100.pt"] == [
        each.path.name for each in survey(tmp_path).candidates
    ]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"weights") + 3] ^= 1
    path.write_bytes(content)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def lose_the_first_bytes(path: Path) -> None:
    path.write_bytes(bytes(300) + path.read_bytes()[300:])


def put(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


def test_an_archive_is_read_to_its_last_entry(tmp_path: Path) -> None:
    assert Finding() == found(write_archive(tmp_path / "checkpoint_1.pt"))


def test_what_numpy_writes_is_an_archive_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "checkpoint_1.npz", weights=np.ones(5))

    assert Finding() == found(tmp_path / "checkpoint_1.npz")


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        pytest.param(empty, "it is empty", id="empty"),
        pytest.param(cut, "its archive is damaged or cut off (File is not a zip file)", id="cut"),
        pytest.param(flip, "archive/data/0 in its archive is damaged", id="one bit"),
        pytest.param(zero, "it holds nothing but zeros", id="zeros"),
        pytest.param(lose_the_first_bytes, "archive/data.pkl in its archive is damaged", id="first block"),
    ],
)
def test_a_torn_archive_is_reported(tmp_path: Path, harm: Callable[[Path], None], problem: str) -> None:
    path = write_archive(tmp_path / "checkpoint_1.pt")
    harm(path)

    assert str(found(path).problem).startswith(problem)


def test_a_format_without_checksums_is_reported_as_unchecked(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_1.pt").write_bytes(pickle.dumps({"weights": 1.0}))

    assert Finding(unchecked=("checkpoint_1.pt",)) == found(tmp_path / "checkpoint_1.pt")


def test_safetensors_are_as_long_as_their_header_says(tmp_path: Path) -> None:
    assert Finding(unchecked=("checkpoint_1.safetensors",)) == found(
        write_safetensors(tmp_path / "checkpoint_1.safetensors")
    )


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        pytest.param(empty, "it is empty", id="empty"),
        pytest.param(lambda path: os.truncate(path, 5), "its header is cut off", id="not even a length"),
        pytest.param(lambda path: os.truncate(path, 60), "its header is cut off", id="within the header"),
        pytest.param(lambda path: os.truncate(path, path.stat().st_size - 7), "it has", id="within the tensors"),
        pytest.param(lengthen, "it has", id="too long"),
        pytest.param(put(b"\2" + bytes(7) + b"[]"), "its header cannot be read", id="another header"),
        pytest.param(put(b"\2" + bytes(7) + b"{x"), "its header cannot be read", id="no JSON"),
        pytest.param(
            put(b"\x1f" + bytes(7) + b'{"a": {"data_offsets": [4, 8]}}'),
            "its header does not describe its bytes",
            id="a gap",
        ),
    ],
)
def test_torn_safetensors_are_reported(tmp_path: Path, harm: Callable[[Path], Any], problem: str) -> None:
    path = write_safetensors(tmp_path / "checkpoint_1.safetensors")
    harm(path)

    assert str(found(path).problem).startswith(problem)


def test_zeros_in_place_of_safetensors_are_reported(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "checkpoint_1.safetensors")
    zero(path)

    assert found(path).problem is not None


@pytest.mark.parametrize(("content", "problem"), [(b'{"step": 1}', None), (b'{"step": ', "it is no JSON")])
def test_json_is_parsed(tmp_path: Path, content: bytes, problem: str | None) -> None:
    (tmp_path / "checkpoint_1.json").write_bytes(content)

    assert Finding(problem=problem) == found(tmp_path / "checkpoint_1.json")


def test_an_unreadable_checkpoint_is_not_intact(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_1.pt").symlink_to(tmp_path / "gone.pt")

    assert "it cannot be read (No such file or directory)" == found(tmp_path / "checkpoint_1.pt").problem


def test_a_checkpoint_that_is_still_being_written_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(tmp_path / "checkpoint_1.pt")
    read = zipfile_reads_then(lambda: os.utime(path, ns=(1, 1)), monkeypatch)

    assert "it changed while it was read: it is still being written" == found(path).problem
    assert read.is_done


def zipfile_reads_then(act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    from zipfile import ZipFile

    told = SimpleNamespace(is_done=False)
    whole = ZipFile.testzip

    def test_then_act(archive: ZipFile) -> str | None:
        result = whole(archive)
        act()
        told.is_done = True
        return result

    monkeypatch.setattr(ZipFile, "testzip", test_then_act)
    return told


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param({}, id="one file"),
        pytest.param({"num_shards": 3}, id="shards"),
        pytest.param({"num_ranks": 4}, id="ranks"),
    ],
)
def test_a_folder_of_a_trainer_is_intact(tmp_path: Path, kind: dict[str, Any]) -> None:
    assert found(write_hugging_face(tmp_path, 500, **kind)).problem is None


def test_a_folder_of_the_model_alone_is_intact(tmp_path: Path) -> None:
    folder = write_hugging_face(tmp_path, 500)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).unlink()

    assert Finding(unchecked=("model.safetensors",)) == found(folder)


def test_the_evaluation_of_a_trainer_at_the_step_is_returned(tmp_path: Path) -> None:
    history = [
        {"step": 250, "eval_loss": 3.0},
        {"step": 500, "loss": 2.5, "learning_rate": 0.1},
        {"step": 500, "eval_loss": 2.25, "eval_runtime": 3.5, "eval_samples_per_second": 80.0, "epoch": 1.0},
        "garbage",
    ]

    assert {"eval_loss": 2.25} == found(write_hugging_face(tmp_path, 500, log_history=history)).evaluation


@pytest.mark.parametrize(
    ("name", "harm", "problem"),
    [
        ("model-00002-of-00003.safetensors", Path.unlink, "model.safetensors.index.json: model-00002-of-00003"),
        ("model-00002-of-00003.safetensors", cut, "model-00002-of-00003.safetensors: it"),
        ("model.safetensors.index.json", put(b"{}"), "model.safetensors.index.json: it names no shards"),
        ("model.safetensors.index.json", Path.unlink, "it has no weights"),
        ("optimizer.pt", Path.unlink, "optimizer.pt is missing beside scheduler.pt"),
        ("optimizer.pt", flip, "optimizer.pt: archive/data/0 in its archive is damaged"),
        ("scheduler.pt", Path.unlink, "scheduler.pt is missing beside optimizer.pt"),
        ("rng_state_1.pth", Path.unlink, "rng_state_1.pth is missing"),
        ("trainer_state.json", Path.unlink, "it has no trainer_state.json (transformers)"),
        ("trainer_state.json", cut, "trainer_state.json: it is no JSON"),
        ("trainer_state.json", put(b'{"global_step": 400}'), "its trainer_state.json is of step 400"),
        ("trainer_state.json", put(b"[]"), "its trainer_state.json names no global_step"),
    ],
)
def test_a_torn_folder_of_a_trainer_is_reported(
    tmp_path: Path, name: str, harm: Callable[[Path], Any], problem: str
) -> None:
    folder = write_hugging_face(tmp_path, 500, num_shards=3, num_ranks=3)
    harm(folder / name)

    assert str(found(folder).problem).startswith(problem)


def test_a_folder_of_accelerate_is_complete_once_its_last_file_exists(tmp_path: Path) -> None:
    folder = write_accelerate(tmp_path, 500)
    whole = found(folder).problem
    (folder / "random_states_0.pkl").unlink()

    assert whole is None
    assert "the file that is written last is missing" in str(found(folder).problem)


@pytest.fixture
def distributed(tmp_path: Path) -> Path:
    """Two shards of `torch.distributed.checkpoint`, written by itself."""
    torch = pytest.importorskip("torch")
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    state = {"model": {f"layer_{number}": torch.randn(32, 32) for number in range(4)}, "step": 5, "lr": [0.1]}
    writer = dcp.FileSystemWriter(tmp_path / "checkpoint_5", single_file_per_rank=False)
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(state, storage_writer=writer)
    return tmp_path / "checkpoint_5"


def test_a_distributed_checkpoint_is_intact(distributed: Path) -> None:
    assert Finding() == found(distributed)


def shard(folder: Path) -> Path:
    return max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        pytest.param(lambda folder: shard(folder).unlink(), "is missing", id="a shard is missing"),
        pytest.param(lambda folder: cut(shard(folder)), "and a piece of it ends at", id="a shard is cut"),
        pytest.param(lambda folder: empty(shard(folder)), "and a piece of it ends at", id="a shard is empty"),
        pytest.param(lambda folder: (folder / ".metadata").unlink(), "written last", id="no metadata"),
        pytest.param(lambda folder: cut(folder / ".metadata"), ".metadata: it cannot be read", id="metadata is cut"),
        pytest.param(lambda folder: empty(folder / ".metadata"), "it cannot be read", id="metadata is empty"),
    ],
)
def test_a_torn_distributed_checkpoint_is_reported(
    distributed: Path, harm: Callable[[Path], Any], problem: str
) -> None:
    harm(distributed)

    assert problem in str(found(distributed).problem)


def test_one_flipped_bit_in_a_distributed_tensor_is_reported(distributed: Path) -> None:
    path = shard(distributed)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    assert "in its archive is damaged" in str(found(distributed).problem)


def test_metadata_that_names_no_shards_is_torn(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_5").mkdir()
    (tmp_path / "checkpoint_5" / ".metadata").write_bytes(pickle.dumps(SimpleNamespace(storage_data={})))

    assert ".metadata: it names no shards" == found(tmp_path / "checkpoint_5").problem


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("attacked",)


def test_nothing_that_a_pickle_names_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint_5").mkdir()
    (tmp_path / "checkpoint_5" / ".metadata").write_bytes(pickle.dumps(Attack()))

    assert ".metadata: it cannot be read" == found(tmp_path / "checkpoint_5").problem
    assert not (tmp_path / "attacked").exists()


def test_distributed_weights_inside_a_folder_of_a_trainer_are_checked_too(tmp_path: Path, distributed: Path) -> None:
    folder = write_hugging_face(tmp_path, 7)
    (folder / "model.safetensors").unlink()
    shutil.copytree(distributed, folder / "pytorch_model_fsdp_0")
    whole = found(folder).problem
    cut(shard(folder / "pytorch_model_fsdp_0"))

    assert whole is None
    assert "pytorch_model_fsdp_0/.metadata: " in str(found(folder).problem)


def test_a_real_folder_of_a_trainer_is_intact(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    safetensors.save_file(model.state_dict(), folder / "model.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0).state_dict(), folder / "scheduler.pt")
    torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    (folder / "trainer_state.json").write_text(
        json.dumps({"global_step": 3, "log_history": [{"loss": float("nan")}]})
    )

    assert Finding(unchecked=("model.safetensors",)) == found(folder)
