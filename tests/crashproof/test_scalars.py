from __future__ import annotations

import math
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from crashproof.errors import InvalidMetric
from crashproof.scalars import as_float, as_int, is_on_device, start_copy


@pytest.mark.parametrize(
    "value, expected",
    [
        pytest.param(2.5, 2.5, id="float"),
        pytest.param(3, 3.0, id="int"),
        pytest.param(True, 1.0, id="bool"),
        pytest.param(np.float64(2.5), 2.5, id="numpy-double"),
        pytest.param(np.float32(2.5), 2.5, id="numpy-single"),
        pytest.param(np.int32(3), 3.0, id="numpy-int"),
        pytest.param(np.array(2.5), 2.5, id="numpy-array-without-dimensions"),
        pytest.param(np.array([2.5]), 2.5, id="numpy-array-of-one"),
        pytest.param(torch.tensor(2.5), 2.5, id="tensor"),
        pytest.param(torch.tensor(2.5, requires_grad=True), 2.5, id="tensor-with-gradient"),
        pytest.param(torch.tensor(2.5, dtype=torch.bfloat16), 2.5, id="half-precision-tensor"),
        pytest.param(-math.inf, -math.inf, id="infinity"),
        pytest.param(Decimal("2.5"), 2.5, id="decimal"),
        pytest.param(Fraction(5, 2), 2.5, id="fraction"),
    ],
)
def test_whatever_holds_one_number_becomes_a_float(value, expected):
    number = as_float(value, "loss")

    assert (float, expected) == (type(number), number)


def test_nan_stays_nan():
    assert math.isnan(as_float(np.float32("nan"), "loss"))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="none"),
        pytest.param("2.5", id="text"),
        pytest.param([2.5], id="list"),
        pytest.param(np.array([1.0, 2.0]), id="array-of-two"),
        pytest.param(torch.zeros(2, 2), id="matrix"),
        pytest.param(1 + 2j, id="complex"),
        pytest.param(np.complex64(1), id="numpy-complex"),
        pytest.param(np.str_("2.5"), id="numpy-text"),
        pytest.param(b"2.5", id="bytes"),
        pytest.param(10**400, id="int-beyond-floats"),
    ],
)
def test_what_is_not_one_number_is_refused_by_name(value):
    with pytest.raises(InvalidMetric, match=r"^loss must be one number") as refused:
        as_float(value, "loss")

    assert "0-d tensor" in refused.value.hint


def test_the_error_says_what_was_passed_in():
    with pytest.raises(InvalidMetric, match=r"got Tensor shape \(2, 3\)"):
        as_float(torch.zeros(2, 3), "loss")


@pytest.mark.parametrize(
    "value, expected",
    [
        pytest.param(7, 7, id="int"),
        pytest.param(0, 0, id="zero"),
        pytest.param(7.0, 7, id="whole-float"),
        pytest.param(np.int64(7), 7, id="numpy-int"),
        pytest.param(np.float32(7), 7, id="numpy-float"),
        pytest.param(torch.tensor(7), 7, id="tensor"),
        pytest.param(2**63 - 1, 2**63 - 1, id="the-largest-that-is-kept"),
    ],
)
def test_whatever_holds_one_whole_number_becomes_an_int(value, expected):
    number = as_int(value, "step")

    assert (int, expected) == (type(number), number)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(-1, id="negative"),
        pytest.param(-1.0, id="negative-float"),
        pytest.param(1.5, id="broken"),
        pytest.param(math.nan, id="nan"),
        pytest.param(math.inf, id="infinity"),
        pytest.param("7", id="text"),
        pytest.param(None, id="none"),
        pytest.param(2**63, id="too-large-for-a-line"),
        pytest.param(torch.zeros(2), id="two-numbers"),
    ],
)
def test_what_is_not_a_count_is_refused_by_name(value):
    with pytest.raises(InvalidMetric, match=r"^step must be"):
        as_int(value, "step")


@pytest.mark.parametrize("value", [2.5, 3, None, np.float32(1), torch.tensor(1.0), "text"])
def test_a_value_on_the_host_is_not_on_a_device(value):
    assert not is_on_device(value)


def test_a_tensor_on_a_device_is_seen_without_waiting_for_it(device):
    assert is_on_device(device.tensor(2.5))


def test_a_copy_is_started_without_waiting_and_read_once_it_has_arrived(device):
    pending = start_copy(device.tensor(2.5))
    was_ready_at_once = pending.is_ready()
    device.finish()

    assert (False, True) == (was_ready_at_once, pending.is_ready())
    assert (2.5, 0) == (pending.value(), device.num_waits)


def test_reading_the_number_early_waits_for_it(device):
    device.has_to_be_waited_for = True
    pending = start_copy(device.tensor(2.5))

    assert (2.5, 1) == (pending.value(), device.num_waits)


def test_no_framework_is_imported():
    command = "import sys, crashproof.scalars; sys.exit(any(name in sys.modules for name in ('torch', 'numpy')))"

    assert 0 == subprocess.run([sys.executable, "-c", command], check=False).returncode
