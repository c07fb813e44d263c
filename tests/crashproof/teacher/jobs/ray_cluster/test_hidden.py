"""Secrets on their way to another process."""

from __future__ import annotations

import pickle

from crashproof.teacher.jobs.ray_cluster.hidden import Hidden


def test_no_text_shows_it_and_another_process_can_open_it() -> None:
    hidden = Hidden("sesame")

    assert "sesame" not in f"{hidden} {hidden!r} {[hidden]} {hidden!s:>20}"
    assert "sesame" == pickle.loads(pickle.dumps(hidden)).open()
