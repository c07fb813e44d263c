from __future__ import annotations

from crashproof import MetricsSnapshot
from crashproof.records.metrics import COLUMNS, INTEGERS, SERIES


def test_every_field_of_an_update_but_its_components_is_a_column():
    assert {*MetricsSnapshot.__struct_fields__} - {"loss_components", "nonfinite", "without_loss"} == {*COLUMNS}


def test_counters_and_the_place_of_an_update_are_no_curves():
    assert {"step", "attempt", "samples_processed", "tokens_processed"} == INTEGERS
    assert {"timestamp", "wall_clock_hours"} == {*COLUMNS} - INTEGERS - {*SERIES}
