from __future__ import annotations

from crashproof import RunReader
from crashproof.views.post_mortem import Surroundings, examine
from crashproof.views.post_mortem_page import post_mortem_page


def test_the_page_lists_every_field_of_the_summary_and_the_config(open_tracker, update, run_dir):
    update(open_tracker(), 1)
    machine = Surroundings(host="node7", free_bytes=None, disk_bytes=None, log_name=None)

    page = post_mortem_page(examine(RunReader.open(run_dir), machine, name="mine", now=1e9))

    assert all(f"<td>{name}</td>" in page for name in ("steps_completed", "loss_trend.verdict", "train.batch_size"))
