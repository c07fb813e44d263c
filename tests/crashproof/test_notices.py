from __future__ import annotations

from crashproof.notices import Notices


def test_a_kind_is_logged_once_and_counted_every_time(caplog):
    notices = Notices()
    for number in range(3):
        notices.warn("text", "Skipping text number %d.", number)

    assert ["Skipping text number 0."] == [each.getMessage() for each in caplog.records]
    assert 3 == notices.counts["text"]


def test_of_too_many_kinds_the_rest_is_announced_and_not_logged(caplog):
    notices = Notices()
    for number in range(200):
        notices.warn(number, "Skipping %d.", number)

    assert 51 == len(caplog.records)
    assert "further ones are not logged" in caplog.records[-1].getMessage()
