from __future__ import annotations

import logging

import pytest

pytest.importorskip("mlflow")

from mlflow import MlflowClient
from mlflow.entities import ViewType

from crashproof.exporters.mlflow import MLflowSink
from crashproof.exporters.replay import replay

# Of what MLflow asks of SQLAlchemy.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def uri(tmp_path):
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return f"sqlite:///{tmp_path}/mlflow.db"


def runs_of(uri: str, view: int = ViewType.ACTIVE_ONLY) -> list:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("crashproof")
    return list(client.search_runs([experiment.experiment_id], run_view_type=view))


def points(uri: str, key: str = "loss") -> list[tuple[int, float | str]]:
    (run,) = runs_of(uri)
    history = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, key)
    return [(each.step, "NaN" if each.value != each.value else each.value) for each in sorted(history, key=_place)]


def _place(metric) -> int:
    return metric.step


def test_mlflow_reads_each_step_once_through_kills_and_keeps_nan(train, canonical, uri):
    for attempt in [(1, 120), (81, 150), (151, 170)]:
        run = train(attempt)
        replay(run, MLflowSink(uri))
        assert canonical(run) == points(uri)
    again = replay(run, MLflowSink(uri))

    assert 0 == again.num_added
    assert (13, "NaN") in points(uri)
    assert 170 == len(points(uri, "loss_components/kd"))


def test_a_run_that_went_back_is_filled_anew_and_the_old_one_can_be_restored(train, uri):
    run = train((1, 40))
    replay(run, MLflowSink(uri))
    train((21, 60))
    replay(run, MLflowSink(uri))

    assert (1, 1) == (len(runs_of(uri)), len(runs_of(uri, ViewType.DELETED_ONLY)))


def test_name_and_config_are_there(train, uri):
    replay(train((1, 3)), MLflowSink(uri))
    (run,) = runs_of(uri)

    assert "run" == run.info.run_name
    assert {"model.d_model": "128", "train.batch_size": "2", "train.steps": "100"} == run.data.params


def test_a_replay_that_was_killed_between_two_batches_is_continued(train, canonical, uri, monkeypatch):
    run = train((1, 300))
    exporter = MLflowSink(uri)
    real, calls = MlflowClient.log_batch, []

    def log_batch(self, *arguments, **given):
        calls.append(1)
        if len(calls) == 4:
            raise ConnectionError("gone")
        return real(self, *arguments, **given)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    with pytest.raises(ConnectionError):
        replay(run, exporter)
    partly = len(points(uri))
    replay(run, MLflowSink(uri))

    assert 0 < partly < 300
    assert canonical(run) == points(uri)
    assert 300 == len(points(uri, "tokens_processed"))


def test_characters_that_mlflow_does_not_allow_are_replaced(open_tracker, update, run_dir, uri):
    update(open_tracker(), 1, loss_components={"a+b=ü": 1.0})

    replay(run_dir, MLflowSink(uri))

    assert [(1, 1.0)] == points(uri, "loss_components/a_b_ü--7cf6d1213b98")


def test_a_loop_that_counts_from_0_is_exported_without_a_second_run(train, canonical, uri):
    for attempt in [(0, 5), (6, 9)]:
        run = train(attempt)
        replayed = replay(run, MLflowSink(uri))
        assert canonical(run) == points(uri)
        assert not replayed.has_begun_anew

    assert (1, 0) == (len(runs_of(uri)), len(runs_of(uri, ViewType.DELETED_ONLY)))
    assert 0 == replay(run, MLflowSink(uri)).num_added


def test_two_runs_share_an_experiment(train, canonical, uri, tmp_path, open_tracker, update):
    replay(train((1, 3)), MLflowSink(uri))
    update(open_tracker(output_dir=tmp_path / "other"), 1)
    replay(tmp_path / "other", MLflowSink(uri))

    assert {"other", "run"} == {run.info.run_name for run in runs_of(uri)}
