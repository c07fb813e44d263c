"""Two ranks as threads look at the checkpoint that they are to resume from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from thread_ranks import ThreadRanks, ranks_in_threads, said_by_two

from crashproof.distillation.training.agreement.checkpoint import require_same_checkpoint
from crashproof.errors import CheckpointDamaged, RankFailed
from crashproof.pytorch.checkpoint_file import save_checkpoint
from crashproof.pytorch.ranks import SingleRank

Alter = Callable[[Path], None]


def archive(folder: Path, value: float = 1.0) -> Path:
    path = folder / "checkpoint_4.pt"
    save_checkpoint(path, {"tensors": {"w": torch.full((3,), value)}})
    return path


def sharded(folder: Path) -> Path:
    path = folder / "checkpoint_4"
    path.mkdir()
    for name in (".metadata", "state.pt", "rank_0.pt", "rank_1.pt", "__0_0.distcp", "__1_0.distcp"):
        (path / name).write_text(name)
    return path


def compare(one: Path, other: Path) -> str:
    return said_by_two(lambda ranks: require_same_checkpoint((one, other)[ranks.rank], ranks))


def test_equal_checkpoints_are_accepted(tmp_path: Path) -> None:
    files, folders = [], []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        files.append(archive(tmp_path / name))
        folders.append(sharded(tmp_path / name))

    assert "" == compare(*files)
    assert "" == compare(*folders)


def test_another_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()

    said = compare(archive(tmp_path / "one"), archive(tmp_path / "other", value=2.0))

    assert "do not have the same checkpoint: checkpoint_4.pt: sha256 " in said
    assert "Let all hosts share the file system of the run" in said


@pytest.mark.parametrize(
    "alter",
    [
        lambda path: (path / "state.pt").write_text("other"),
        lambda path: (path / ".metadata").write_text("other"),
        lambda path: (path / "rank_1.pt").unlink(),
        lambda path: (path / "__1_0.distcp").unlink(),
    ],
    ids=["state", "metadata", "random-states", "shard"],
)
def test_another_folder_of_the_same_name_is_refused(tmp_path: Path, alter: Alter) -> None:
    one = sharded(tmp_path)
    (tmp_path / "other").mkdir()
    other = Path(shutil.copytree(one, tmp_path / "other" / one.name))
    alter(other)

    assert "do not have the same checkpoint: checkpoint_4: sha256 " in compare(one, other)


@pytest.mark.parametrize("content", [None, b"torn"], ids=["missing", "torn"])
def test_one_that_one_rank_cannot_read_is_refused_on_all(tmp_path: Path, content: bytes | None) -> None:
    paths = archive(tmp_path), tmp_path / "elsewhere.pt"
    if content is not None:
        paths[1].write_bytes(content)

    def outcome(ranks: ThreadRanks) -> type[Exception] | None:
        try:
            require_same_checkpoint(paths[ranks.rank], ranks)
        except (CheckpointDamaged, RankFailed) as error:
            return type(error)
        return None

    with ThreadPoolExecutor(2) as pool:
        raised = list(pool.map(outcome, ranks_in_threads(2)))

    assert [RankFailed, CheckpointDamaged] == raised


def test_a_single_process_reads_nothing(tmp_path: Path) -> None:
    require_same_checkpoint(tmp_path / "nowhere", SingleRank())
