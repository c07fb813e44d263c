from __future__ import annotations

import numpy as np
import pytest

from crashproof.errors import InvalidMetric
from crashproof.tracking.pending_updates import Measured, Update, WaitingUpdates, measured_at_once


def update(step: int) -> Update:
    return Update(1000.0, 1.0, step, 8 * step, 100 * step, None, None)


@pytest.fixture
def written() -> list[tuple[int, Measured]]:
    return []


@pytest.fixture
def waiting(written) -> WaitingUpdates:
    return WaitingUpdates(lambda each, measured: written.append((each.step, measured)))


def test_an_update_is_written_once_its_numbers_have_arrived(waiting, written, device):
    waiting.add(update(1), device.tensor(2.5), {"kd": device.tensor(1.5), "ce": 1.0}, 0.1)
    waiting.write_ready()
    written_before = list(written)
    device.finish()
    waiting.write_ready()

    assert [] == written_before
    assert [(1, Measured(loss=2.5, components={"kd": 1.5, "ce": 1.0}, learning_rate=0.1))] == written
    assert 0 == len(waiting)


def test_a_step_whose_numbers_are_here_waits_for_the_ones_before_it(waiting, written, device):
    waiting.add(update(1), device.tensor(2.5), {}, 0.1)
    waiting.add(update(2), 2.0, {}, 0.1)
    waiting.write_ready()
    num_queued = len(waiting)
    device.finish()
    waiting.write_ready()

    assert 2 == num_queued
    assert [1, 2] == [step for step, _ in written]


@pytest.mark.parametrize("place", ["loss", "component", "learning_rate"])
def test_any_number_on_the_device_makes_an_update_wait(waiting, written, device, place):
    late = device.tensor(2.5)
    numbers = {"loss": 1.0, "component": 1.0, "learning_rate": 1.0} | {place: late}
    waiting.add(update(1), numbers["loss"], {"kd": numbers["component"]}, numbers["learning_rate"])
    waiting.write_ready()

    assert [] == written
    assert None is measured_at_once(numbers["loss"], {"kd": numbers["component"]}, numbers["learning_rate"])


@pytest.mark.parametrize(
    "loss, components, learning_rate",
    [
        pytest.param(2.5, {"kd": 1.0, "ce": 2.0}, 0.5, id="floats"),
        pytest.param(2.5, {"kd": 1, "ce": 2.0}, 0.5, id="an-int-among-floats"),
        pytest.param(np.float32(2.5), {"kd": 1.0, "ce": np.float64(2)}, 0.5, id="numpy"),
    ],
)
def test_numbers_on_the_host_are_measured_at_once(loss, components, learning_rate):
    measured = measured_at_once(loss, components, learning_rate)

    assert Measured(loss=2.5, components={"kd": 1.0, "ce": 2.0}, learning_rate=0.5) == measured
    assert {float} == {type(number) for number in (measured.loss, *measured.components.values())}


def test_what_was_measured_is_not_changed_by_its_reporter():
    components = {"kd": 1.0}
    measured = measured_at_once(2.5, components, 0.5)
    components["kd"] = 9.0

    assert {"kd": 1.0} == measured.components


@pytest.mark.parametrize(
    "loss, components, learning_rate, name",
    [
        ("high", {}, 0.5, "loss"),
        (2.5, {"kd": None}, 0.5, "kd"),
        (2.5, {}, "fast", "learning_rate"),
    ],
)
def test_what_is_no_number_is_refused_by_name(loss, components, learning_rate, name):
    with pytest.raises(InvalidMetric, match=f"^{name} must be one number"):
        measured_at_once(loss, components, learning_rate)


def test_at_the_end_all_are_waited_for_and_written_in_order(waiting, written, device):
    for step in (1, 2, 3):
        waiting.add(update(step), device.tensor(float(step)), {}, 0.1)
    device.has_to_be_waited_for = True
    waiting.write_all()

    assert [(1, 1.0), (2, 2.0), (3, 3.0)] == [(step, measured.loss) for step, measured in written]


def test_what_cannot_be_kept_is_refused_before_it_waits(waiting, device):
    with pytest.raises(InvalidMetric, match="learning_rate"):
        waiting.add(update(1), device.tensor(2.5), {}, "fast")

    assert 0 == len(waiting)


def test_components_that_are_no_mapping_are_refused_in_words() -> None:
    with pytest.raises(InvalidMetric, match="loss_components must be a mapping, got NoneType"):
        measured_at_once(1.0, None, 0.1)
