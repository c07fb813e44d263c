from __future__ import annotations

import pytest
import torch

from crashproof.pytorch.own_time import CudaMarks, HostMarks, OwnTime
from crashproof.testing import FakeClock


class LateMarks:
    """A clock whose marks pass only when a test says so, as a device's do."""

    def __init__(self) -> None:
        self.moment = 0.0
        self.passed = 0.0

    def now(self) -> float:
        return self.moment

    def seconds(self, start: float, end: float) -> float | None:
        return end - start if end <= self.passed else None


def test_waits_do_not_count_and_all_else_does() -> None:
    clock = FakeClock()
    own = OwnTime(HostMarks(clock))
    for _ in range(2):
        clock.advance(3.0)
        with own.waiting():
            clock.advance(100.0)
        clock.advance(4.0)
        own.end_step()

    assert [7.0, 7.0] == own.take()
    assert [] == own.take()


def test_a_pause_in_a_pause_is_one_pause() -> None:
    clock = FakeClock()
    own = OwnTime(HostMarks(clock))
    own.pause()
    own.pause()
    clock.advance(5.0)
    own.resume()
    own.resume()
    clock.advance(1.0)
    own.end_step()

    assert [1.0] == own.take()


def test_a_wait_that_fails_is_over() -> None:
    clock = FakeClock()
    own = OwnTime(HostMarks(clock))
    with pytest.raises(ValueError, match="lost"), own.waiting():
        raise ValueError("lost")
    clock.advance(2.0)
    own.end_step()

    assert [2.0] == own.take()


def test_steps_that_the_device_has_not_done_yet_are_told_later_and_in_order() -> None:
    marks = LateMarks()
    own = OwnTime(marks)
    for seconds in (1.0, 2.0):
        marks.moment += seconds
        own.end_step()

    assert [] == own.take()
    marks.passed = 1.0
    assert [1.0] == own.take()
    marks.passed = 3.0
    assert [2.0] == own.take()


def test_steps_that_nobody_takes_are_forgotten() -> None:
    clock = FakeClock()
    own = OwnTime(HostMarks(clock))
    for number in range(5000):
        clock.advance(float(number))
        own.end_step()

    assert [float(number) for number in range(4000, 5000)] == own.take()


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_is_timed_without_being_waited_for() -> None:
    own = OwnTime(CudaMarks())
    matrix = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            for _ in range(20):
                matrix = matrix @ matrix
            with own.waiting():
                for _ in range(60):
                    matrix = matrix @ matrix
            own.end_step()
        at_once = own.take()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    steps = at_once + own.take()

    assert 3 == len(steps)
    assert len(at_once) < 3
    assert all(each > 0 for each in steps)
