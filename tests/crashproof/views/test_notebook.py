from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from crashproof import show
from crashproof.errors import NotARun
from crashproof.views.notebook import escaped


def test_a_run_is_shown_in_words_and_with_its_curve(open_tracker, update, save_checkpoint, run_dir):
    tracker = open_tracker()
    for step in range(1, 41):
        update(tracker, step, loss=5.0 - step / 10)
    save_checkpoint(tracker, 40)
    tracker.record_api_response("key", {}, 0.5)

    glance = show(run_dir)

    assert "step 40 of 100 (40.0 %)" in repr(glance)
    assert "loss 1.0000: improving" in repr(glance)
    assert "newest checkpoint: step 40" in repr(glance)
    assert "paid to teachers: $0.50" in repr(glance)
    assert "<svg" in glance._repr_html_()


def test_saves_that_have_failed_are_shown(open_tracker, update, run_dir):
    tracker = open_tracker()
    update(tracker, 7)
    tracker.record_checkpoint_failure(7, "no quota")

    assert "The newest save has failed, at step 7: no quota; there is no checkpoint yet" in repr(show(run_dir))


def test_what_a_notebook_draws_has_no_script_and_asks_nobody(tmp_path, open_tracker, update):
    hostile = tmp_path / "<script>alert(1)<-script>"
    tracker = open_tracker(output_dir=hostile)
    for step in range(1, 4):
        update(tracker, step, loss_components={"<img src=x>": 1.0})

    html = show(hostile)._repr_html_()

    assert "<script" not in html
    assert "<img" not in html
    assert [] == re.findall(r"(?:src|href)\s*=", html)
    ElementTree.fromstring(html.replace("<br>", "<br/>"))


def test_a_killed_and_resumed_run_is_shown_with_its_attempts(open_tracker, update, run_dir, left_by_a_kill):
    first = open_tracker()
    for step in range(1, 21):
        update(first, step)
    run = left_by_a_kill(run_dir)
    second = open_tracker(output_dir=run)
    for step in range(11, 31):
        update(second, step)
    second.close("preempted")

    glance = show(run)

    assert "preempted (asked to stop, and saved)" in repr(glance)
    assert "attempt 2; 10 steps recomputed" in repr(glance)
    assert "attempt 2</text>" in glance._repr_html_()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(NotARun, match="holds no run"):
        show(tmp_path)


def test_a_run_without_an_update_has_no_curve(open_tracker, run_dir):
    open_tracker()

    assert "<svg" not in show(run_dir)._repr_html_()
    assert "starting" in repr(show(run_dir)) or "stalled" in repr(show(run_dir))


def test_text_for_html_keeps_no_control_character():
    assert "a&lt;b&gt;\\x1b[31m\\x00\n" == escaped("a<b>\x1b[31m\x00\n")
