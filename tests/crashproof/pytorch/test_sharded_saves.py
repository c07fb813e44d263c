"""Saves of two processes, each with a disk of its own temper, in one folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from crashproof import RunReader
from crashproof.records.events import CheckpointFailed, CheckpointSetAside

PROGRAM = """
import errno, json, os, shutil, sys
from pathlib import Path
import torch
from crashproof import training_progress_context
from crashproof.disk.files import Disk
from crashproof.distillation.settings.progress import ProgressConfig
from crashproof.distillation.training.saving import CheckpointSaver
from crashproof.distillation.training.training_state import TrainingState
from crashproof.errors import SavesFailed
from crashproof.pytorch.ranks import join_ranks

rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])

class Temper(Disk):
    error = None
    is_elsewhere = False
    def open_anew(self, path):
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        if self.is_elsewhere:
            path = folder.parent / "elsewhere" / path.name
            path.parent.mkdir(exist_ok=True)
        return super().open_anew(path)

disk = Temper()
said = []

def step_to(step):
    state.counters.step = step
    context.update_metrics(step, 1.0, {}, 0.1, step, step)

def save(step):
    step_to(step)
    saver.save()
    saver._wait_for_last()
    said.append([saver.saved_step, saver._num_failed])

with join_ranks(device_type="cpu", limit_seconds=60) as ranks:
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    state = TrainingState(module=module, optimizer=torch.optim.AdamW(module.parameters()),
                          scaler=torch.amp.GradScaler("cpu", enabled=False), ranks=ranks, seed=0)
    settings = ProgressConfig(max_failed_saves=4, last_save_seconds=0)
    with training_progress_context({}, folder, 100, is_main_process=ranks.is_main) as context:
        saver = CheckpointSaver(state, context, folder, ranks, settings=settings, disk=disk)
        saver.require_room()
        save(10)
        save(20)
        # The third save fails on one rank only.
        disk.error = errno.EDQUOT if rank == 1 else None
        save(30)
        # Another one fails for another reason: what this rank writes goes elsewhere.
        disk.error, disk.is_elsewhere = None, rank == 1
        save(40)
        disk.is_elsewhere = False
        partials = sorted(each.name for each in folder.glob(".*"))
        save(50)
        # The step was saved before, by a process that was killed, or that had gone further.
        save(20)
        # The main rank cannot write, until the run has to stop.
        disk.error = errno.EROFS if rank == 0 else None
        for step in (60, 70, 80, 90):
            save(step)
        step_to(100)
        try:
            saver.save()
        except SavesFailed as error:
            said.append(str(error))
        saver.close()
    print(json.dumps({"said": said, "partials": partials}))
"""


def on_two_processes(folder: Path) -> list[Any]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ended = [each.communicate(timeout=200) for each in started]
    assert [0, 0] == [each.returncode for each in started], [error for _, error in ended]
    return [json.loads(out) for out, _ in ended]


def test_a_rank_that_cannot_save_is_a_failed_save_of_all_and_leaves_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"

    main, other = on_two_processes(run)

    assert main["said"] == other["said"]
    assert [] == main["partials"]
    *saves, stopped = main["said"]
    assert [[10, 0], [20, 0], [20, 1], [20, 2], [50, 0], [20, 0]] == saves[:6]
    assert [[20, 1], [20, 2], [20, 3], [20, 4]] == saves[6:]
    assert "Step 100 could not be saved: Rank 0: " in stopped
    assert "Read-only file system. 5 saves in a row have failed." in stopped
    assert "The newest checkpoint is that of step 20, so 80 steps are lost." in stopped
    reader = RunReader.open(run)
    failed = {each.step: each.error for each in reader.events() if isinstance(each, CheckpointFailed)}
    assert [30, 40, 60, 70, 80, 90, 100] == list(failed)
    assert "Rank 1: " in failed[30]
    assert "quota is used up" in failed[30]
    assert "all hosts must share the output folder" in failed[40]
    # What was saved twice is kept aside, and all that is recorded is intact.
    moved = [each.checkpoint_path for each in reader.events() if isinstance(each, CheckpointSetAside)]
    assert ["checkpoint_20"] == moved
    assert {10, 20, 50} == set(reader.session().checkpoints)
    assert [] == reader.problems()
    assert {"checkpoint_10", "checkpoint_20", "checkpoint_50", "progress"} == {each.name for each in run.iterdir()}
