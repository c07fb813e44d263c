import errno
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from crashproof.disk.atomic import write_atomically
from crashproof.disk.files import Disk
from crashproof.errors import CheckpointDamaged, CheckpointMismatch, DiskFull, StorageUnwritable
from crashproof.pytorch.checkpoint_file import load_checkpoint, require_fit, save_checkpoint
from crashproof.testing import FaultyDisk

STATE = {"weights": {"a": torch.arange(3000.0), "b": torch.ones(2, 3)}, "step": 7, "best_loss": float("inf")}
SHAPES = {"a": torch.Size([3000]), "b": torch.Size([2, 3])}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint_7.pt"
    save_checkpoint(path, STATE)
    return path


class _WriteFails(Disk):
    """A disk whose n-th write is refused."""

    def __init__(self, error: int, *, at: int) -> None:
        self._error = error
        self._writes_left = at

    def write(self, file: int, content: bytes | memoryview) -> int:  # type: ignore[override]
        self._writes_left -= 1
        if self._writes_left < 0:
            raise OSError(self._error, "refused")
        return Disk.write(file, content)


@pytest.mark.parametrize("is_mapped", [False, True], ids=["read", "mapped"])
def test_what_was_saved_is_loaded(saved: Path, is_mapped: bool) -> None:
    loaded = load_checkpoint(saved, is_mapped=is_mapped)

    assert (7, float("inf")) == (loaded["step"], loaded["best_loss"])
    assert torch.equal(STATE["weights"]["a"], loaded["weights"]["a"])


def test_the_size_and_digest_are_those_of_the_file(tmp_path: Path) -> None:
    written = save_checkpoint(tmp_path / "c.pt", STATE)

    assert (tmp_path / "c.pt").stat().st_size == written.num_bytes


def test_any_pytorch_program_can_read_it(saved: Path) -> None:
    assert 7 == torch.load(saved, weights_only=True)["step"]


@pytest.mark.parametrize(
    "error, expected",
    [(errno.ENOSPC, DiskFull), (errno.EROFS, StorageUnwritable)],
    ids=["a full disk", "a read-only disk"],
)
@pytest.mark.parametrize("at", [0, 1, 5])
def test_a_save_that_fails_says_why_and_leaves_the_old_file(
    saved: Path, error: int, expected: type[Exception], at: int
) -> None:
    before = saved.read_bytes()

    with pytest.raises(expected):
        save_checkpoint(saved, STATE | {"step": 8}, disk=_WriteFails(error, at=at))

    assert before == saved.read_bytes()
    assert [saved] == list(saved.parent.iterdir())


def test_an_error_that_is_not_the_disks_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        save_checkpoint(tmp_path / "c.pt", {"no data": lambda: None})

    assert [] == list(tmp_path.iterdir())


def test_a_save_survives_a_power_loss_or_never_was(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    disk = FaultyDisk(root, tmp_path / "scratch")
    save_checkpoint(root / "c.pt", STATE, disk=disk)

    left = tmp_path / "left"
    disk.after_power_loss(left, world="strict")

    assert 7 == load_checkpoint(left / "c.pt")["step"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointDamaged, match=r"nowhere\.pt cannot be used: there is no such file"):
        load_checkpoint(tmp_path / "nowhere.pt")


def test_a_torn_file_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-100])

    with pytest.raises(CheckpointDamaged, match="torn or altered"):
        load_checkpoint(saved)


def test_one_altered_bit_of_the_weights_is_noticed(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    place = content.index(torch.arange(3000.0).numpy().tobytes()[-400:])
    content[place] ^= 1
    saved.write_bytes(content)
    assert "step" in torch.load(saved, weights_only=True), "PyTorch itself does not notice"

    with pytest.raises(CheckpointDamaged, match="was altered"):
        load_checkpoint(saved)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"weights": Runs()}, tmp_path / "c.pt")

    with pytest.raises(CheckpointDamaged, match="PyTorch cannot read it"):
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "ran").exists()


def test_another_archive_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("hello", "world")

    with pytest.raises(CheckpointDamaged, match="PyTorch cannot read it"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_bare_tensor_is_no_training_state(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "c.pt")

    with pytest.raises(CheckpointDamaged, match="it contains a Tensor"):
        load_checkpoint(tmp_path / "c.pt")


def test_equal_names_and_shapes_fit() -> None:
    assert None is require_fit(Path("c.pt"), SHAPES, {"a": torch.Size([3000]), "b": torch.Size([2, 3])})


@pytest.mark.parametrize(
    "expected, reason",
    [
        ({"a": torch.Size([3000])}, "b is unknown here"),
        ({"a": torch.Size([3000]), "b": torch.Size([2, 3]), "c": torch.Size([1])}, "c is missing in it"),
        ({"a": torch.Size([3000]), "b": torch.Size([3, 3])}, r"b has shape \(2, 3\), \(3, 3\) is expected"),
    ],
    ids=["one too many", "one missing", "another shape"],
)
def test_another_architecture_is_refused_with_its_first_differences(
    expected: dict[str, torch.Size], reason: str
) -> None:
    with pytest.raises(CheckpointMismatch, match=reason):
        require_fit(Path("c.pt"), SHAPES, expected)


def test_many_differences_are_counted_and_three_named() -> None:
    expected = {f"layer_{number}": torch.Size([1]) for number in range(9)}

    with pytest.raises(CheckpointMismatch, match=r"layer_0 is .*; layer_1 is .*; layer_2 is .*; and 6 more"):
        require_fit(Path("c.pt"), {}, expected)


@pytest.mark.parametrize("number", range(1, 6))
def test_the_loop_of_the_guide_sees_a_full_disk_as_such(tmp_path, number):
    run = tmp_path / "run"
    run.mkdir()
    disk = FaultyDisk(run, tmp_path / "scratch", fails_at=number, error=errno.ENOSPC, lasts=True)

    with pytest.raises(DiskFull, match="The disk is full"):
        write_atomically(run / "x.pt", lambda file: torch.save({"a": torch.zeros(100_000)}, file), disk=disk)

    assert [] == list(run.iterdir())
