from __future__ import annotations

import math
import re

import pytest

import crashproof
from crashproof.errors import ConfigError, MissingExtra, NotARun
from crashproof.optional_dependencies import install_line

FRAMES = ["pandas", "polars"]


@pytest.fixture
def run(open_tracker, update, run_dir, save_checkpoint):
    for first, last in [(1, 30), (21, 40)]:
        tracker = open_tracker()
        for step in range(first, last + 1):
            update(tracker, step, loss=math.nan if step == 13 else 1.0 / step)
        save_checkpoint(tracker, last)
        tracker.record_evaluation(last, {"perplexity": float(last)})
    return run_dir


@pytest.mark.parametrize("engine", FRAMES)
def test_the_metrics_are_a_frame_with_each_step_once(run, engine):
    pytest.importorskip(engine)

    metrics = crashproof.load(run, engine=engine).metrics

    assert engine == type(metrics).__module__.split(".")[0]
    assert list(range(1, 41)) == list(metrics["step"])
    assert [1] * 20 + [2] * 20 == list(metrics["attempt"])
    assert math.isnan(metrics["loss"][12])
    assert [1.5] * 40 == list(metrics["loss_components.kd"])


@pytest.mark.parametrize("engine", FRAMES)
def test_evaluations_checkpoints_attempts_and_config_are_loaded(run, engine):
    pytest.importorskip(engine)
    loaded = crashproof.load(run, engine=engine)

    # The second attempt has computed step 30 again.
    assert [(40, 40.0)] == list(zip(loaded.evaluations["step"], loaded.evaluations["perplexity"], strict=True))
    assert [30, 40] == list(loaded.checkpoints["step"])
    assert [1, 2] == list(loaded.attempts["attempt"])
    assert 2 == loaded.config["train"]["batch_size"]


@pytest.mark.parametrize("engine", FRAMES)
def test_a_run_without_updates_has_an_empty_frame(open_tracker, run_dir, engine):
    pytest.importorskip(engine)
    open_tracker()

    assert 0 == len(crashproof.load(run_dir, engine=engine).metrics)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(NotARun):
        crashproof.load(tmp_path)


def test_an_unknown_engine_is_refused(run):
    with pytest.raises(ConfigError, match="no engine 'excel'"):
        crashproof.load(run, engine="excel")


@pytest.mark.parametrize("engine, extra", [(None, "pandas"), ("polars", "polars")])
def test_without_a_library_the_error_has_the_install_command(run, monkeypatch, engine, extra):
    monkeypatch.setattr("crashproof.views.dataframes.is_installed", lambda name: False)

    with pytest.raises(MissingExtra, match=re.escape(install_line(extra))):
        crashproof.load(run, engine=engine)
