from __future__ import annotations

import time

from crashproof.clock import SYSTEM_CLOCK, Clock, SystemClock
from crashproof.testing import FakeClock


def test_the_system_clock_tells_the_time_of_the_machine():
    before, now, after = time.time(), SYSTEM_CLOCK.now(), time.time()

    assert before <= now <= after


def test_steady_time_never_goes_back():
    moments = [SystemClock().steady() for _ in range(100)]

    assert sorted(moments) == moments


def test_real_and_fake_clocks_can_be_exchanged():
    clocks: list[Clock] = [SYSTEM_CLOCK, FakeClock()]

    assert [float, float] == [type(clock.now()) for clock in clocks]
