"""Where the line of each key lies."""

from __future__ import annotations

import random

import pytest

from crashproof.disk.spool.place_table import ENTRY_BYTES, PlaceTable, SortedPlaces


@pytest.mark.parametrize("count", [0, 1, 49_999, 50_000, 120_000])
def test_of_places_in_any_number_the_last_of_each_key_is_found(count):
    chance = random.Random(count)
    keys = [str(chance.randrange(max(1, count // 2))) for _ in range(count)]
    newest = {key: (number * 7, 7) for number, key in enumerate(keys)}
    table = PlaceTable()
    table.replace(SortedPlaces.of((key, (number * 7, 7)) for number, key in enumerate(keys)))

    asked = [*chance.sample(sorted(newest), min(len(newest), 500)), "missing"]
    assert [newest.get(key) for key in asked] == [table.find(key) for key in asked]
    assert len(newest) == len(table)


def test_what_is_put_is_found_before_and_after_it_is_sorted_in():
    table = PlaceTable()
    for number in range(25_000):
        table.put(str(number), (number, 1))
    before, is_due = table.find("24999"), table.is_sorting_due
    table.put("7", (99, 2))
    table.put("8", (0, 0))
    places = table.sort()

    assert ((24_999, 1), True, False, 0) == (before, is_due, table.is_sorting_due, table.num_unsorted)
    assert ((99, 2), None) == (table.find("7"), table.find("8"))
    assert 24_999 * ENTRY_BYTES == len(places.content)
