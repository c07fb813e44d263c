from __future__ import annotations

import numpy as np
import pytest

from crashproof.odd_values import OddValues
from crashproof.records.metrics import Numbers, Update
from crashproof.tracking.metrics.pending_updates import (
    Moment,
    PendingUpdates,
    as_reported,
    floats_of,
    numbers_on_host,
)

NOW = Moment(1000.0, 1.0)


def update(step: int, loss: object = 2.0, loss_components: object = (), learning_rate: object = 0.1) -> Update:
    return Update(
        step=step,
        loss=loss,
        loss_components={} if loss_components == () else loss_components,
        learning_rate=learning_rate,
        samples_processed=8 * step,
        tokens_processed=100 * step,
    )


@pytest.fixture
def written() -> list[tuple[int, Numbers]]:
    return []


@pytest.fixture
def waiting(written) -> PendingUpdates:
    return PendingUpdates(lambda _, each, numbers: written.append((each.step, numbers)))


def test_an_update_is_written_once_its_numbers_have_arrived(waiting, written, device):
    waiting.add(NOW, update(1, device.tensor(2.5), {"kd": device.tensor(1.5), "ce": 1.0}, 0.1))
    waiting.write_ready()
    written_before = list(written)
    device.finish()
    waiting.write_ready()

    assert [] == written_before
    assert [(1, Numbers(loss=2.5, components={"kd": 1.5, "ce": 1.0}, learning_rate=0.1))] == written
    assert 0 == len(waiting)


def test_a_step_whose_numbers_are_here_waits_for_the_ones_before_it(waiting, written, device):
    waiting.add(NOW, update(1, device.tensor(2.5), {}, 0.1))
    waiting.add(NOW, update(2, 2.0, {}, 0.1))
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
    waiting.add(NOW, update(1, numbers["loss"], {"kd": numbers["component"]}, numbers["learning_rate"]))
    waiting.write_ready()

    assert [] == written
    assert None is numbers_on_host(update(1, numbers["loss"], {"kd": numbers["component"]}, numbers["learning_rate"]))


@pytest.mark.parametrize(
    "loss, components, learning_rate",
    [
        pytest.param(2.5, {"kd": 1.0, "ce": 2.0}, 0.5, id="floats"),
        pytest.param(2.5, {"kd": 1, "ce": 2.0}, 0.5, id="an-int-among-floats"),
        pytest.param(np.float32(2.5), {"kd": 1.0, "ce": np.float64(2)}, 0.5, id="numpy"),
    ],
)
def test_numbers_on_the_host_are_measured_at_once(loss, components, learning_rate):
    measured = numbers_on_host(update(1, loss, components, learning_rate))

    assert Numbers(loss=2.5, components={"kd": 1.0, "ce": 2.0}, learning_rate=0.5) == measured
    assert {float} == {type(number) for number in (measured.loss, *measured.components.values())}


def test_what_was_measured_is_not_changed_by_its_reporter():
    components = {"kd": 1.0}
    measured = floats_of(update(1, 2.5, components, 0.5))
    components["kd"] = 9.0

    assert {"kd": 1.0} == measured.components


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"loss": "high"}, Numbers(None, {}, 0.5)),
        ({"loss_components": {"kd": None, "ce": 1}}, Numbers(2.5, {"ce": 1.0}, 0.5)),
        ({"loss_components": None}, Numbers(2.5, {}, 0.5)),
        ({"learning_rate": "fast"}, Numbers(2.5, {}, 0.0)),
    ],
)
def test_what_is_no_number_is_left_out(given, expected):
    reported = as_reported(update(1, **({"loss": 2.5, "learning_rate": 0.5} | given)), OddValues())

    assert expected == numbers_on_host(reported)


def test_an_update_without_a_loss_waits_for_its_components_alone(waiting, written, device):
    waiting.add(NOW, update(1, None, {"kd": device.tensor(1.5)}))
    device.finish()
    waiting.write_ready()

    assert [(1, Numbers(loss=None, components={"kd": 1.5}, learning_rate=0.1))] == written


def test_at_the_end_all_are_waited_for_and_written_in_order(waiting, written, device):
    for step in (1, 2, 3):
        waiting.add(NOW, update(step, device.tensor(float(step)), {}, 0.1))
    device.has_to_be_waited_for = True
    waiting.write_all()

    assert [(1, 1.0), (2, 2.0), (3, 3.0)] == [(step, measured.loss) for step, measured in written]
