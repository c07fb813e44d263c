"""Shared fixtures: a clock under control, a run, a reported step, a slow device."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings

from crashproof import ProgressTracker, RunReader, TrackerSettings
from crashproof.testing import FakeClock

# How long an example takes depends on the machine.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

QUIET = TrackerSettings(has_heartbeat=False)
CONFIG = {"model": {"d_model": 128}, "train": {"batch_size": 2, "steps": 100}}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The output folder of this test's run; it does not exist yet."""
    return tmp_path / "run"


@pytest.fixture
def open_tracker(run_dir: Path, clock: FakeClock) -> Iterator[Callable[..., ProgressTracker]]:
    """Open this test's run, or another folder's, as often as asked; nothing happens between calls."""
    opened = []

    def open_it(
        config: Any = CONFIG,
        total_steps: Any = 100,
        *,
        output_dir: Path = run_dir,
        settings: TrackerSettings = QUIET,
        **others: Any,
    ) -> ProgressTracker:
        arguments = {"clock": clock} | others
        tracker = ProgressTracker(output_dir / "progress", config, total_steps, settings=settings, **arguments)
        opened.append(tracker)
        return tracker

    yield open_it
    for tracker in opened:
        tracker.close()


@pytest.fixture
def update() -> Callable[..., None]:
    """Report one step; works for trackers and contexts."""

    def report(tracker: Any, step: int, loss: Any = 2.0, **given: Any) -> None:
        usual = {
            "loss_components": {"kd": 1.5, "ce": 0.5},
            "learning_rate": 1e-3,
            "samples_processed": 8 * step,
            "tokens_processed": 1024 * step,
        }
        tracker.update_metrics(step=step, loss=loss, **(usual | given))

    return report


@pytest.fixture
def save_checkpoint(run_dir: Path) -> Callable[..., Path]:
    """Write a checkpoint file as other code would, and record it; `written_at` is what the file says of that."""

    def save(tracker: Any, step: int, content: bytes | None = None, **given: Any) -> Path:
        path = given.pop("path", run_dir / f"checkpoint_{step}.pt")
        path.write_bytes(content or b"weights of step %d" % step)
        if (written_at := given.pop("written_at", None)) is not None:
            os.utime(path, (written_at, written_at))
        tracker.record_checkpoint(step, path, 8 * step, **given)
        return path

    return save


@pytest.fixture
def left_by_a_kill(tmp_path: Path) -> Callable[[Path], Path]:
    """What a SIGKILL at this moment would leave of a run: a copy of its files, which no process has open."""
    copies = []

    def copy(run: Path) -> Path:
        target = tmp_path / f"left_{len(copies)}"
        copies.append(shutil.copytree(run, target))
        return target

    return copy


@pytest.fixture
def problems_of() -> Callable[[Path], list[str]]:
    """The run's own audit."""
    return lambda output_dir: RunReader.open(output_dir).problems()


@pytest.fixture
def read_json() -> Callable[[Path], Any]:
    """A JSON file as `jq`, browsers and strict parsers read it: no NaN, no infinity, no duplicate key."""
    return lambda path: strict_json(path.read_text())


@pytest.fixture
def read_lines() -> Callable[[Path], list[Any]]:
    """The lines of a journal, each strictly parsed."""
    return lambda path: [strict_json(line) for line in path.read_text().splitlines()]


def strict_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), f"duplicate keys: {[name for name, _ in pairs]}"
        return dict(pairs)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=without_duplicates)


@dataclass
class FakeDevice:
    """A device whose kernels run until `finish`; the test fails if the host waits for it before."""

    is_done: bool = False
    num_waits: int = 0
    has_to_be_waited_for: bool = False
    events: list[Any] = field(default_factory=list)

    def tensor(self, value: float) -> Any:
        return _FakeCudaTensor(self, value)

    def finish(self) -> None:
        self.is_done = True


class _FakeCudaTensor:
    is_cuda = True
    shape = ()

    def __init__(self, device: FakeDevice, value: float) -> None:
        self._device = device
        self._value = value

    def detach(self) -> _FakeCudaTensor:
        return self

    def to(self, place: str, *, non_blocking: bool) -> _HostCopy:
        assert (place, non_blocking) == ("cpu", True)
        return _HostCopy(self._device, self._value)

    def item(self) -> float:
        pytest.fail("the host waited for the device")

    __float__ = __index__ = item


class _HostCopy:
    def __init__(self, device: FakeDevice, value: float) -> None:
        self._device = device
        self._value = value

    def item(self) -> float:
        assert self._device.is_done, "the copy was read before it had arrived"
        return self._value


class _FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self._device = device

    def record(self) -> None:
        self._device.events.append(self)

    def query(self) -> bool:
        return self._device.is_done

    def synchronize(self) -> None:
        if not self._device.is_done:
            assert self._device.has_to_be_waited_for, "the host waited for the device"
            self._device.num_waits += 1
            self._device.is_done = True


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """A fake CUDA device and, under the name of its tensors' module, the framework that they come from."""
    fake = FakeDevice()
    framework = ModuleType("fake_framework")
    framework.cuda = SimpleNamespace(Event=lambda: _FakeEvent(fake))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_framework", framework)
    monkeypatch.setattr(_FakeCudaTensor, "__module__", "fake_framework.tensors")
    return fake
