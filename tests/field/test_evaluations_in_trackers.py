"""Results on held-out data in every tracker, table and frame, at their step and under their usual names."""

from __future__ import annotations

import csv
import logging
import math
import shutil
from pathlib import Path

import pytest

import crashproof
from crashproof import RunReader
from crashproof.exporters.exporter import spelled
from crashproof.exporters.replay import replay
from crashproof.exporters.tables import write_csv, write_parquet
from crashproof.rules.naming.trackers import digest_suffix

# Of what the trackers' clients leave to the end of the program.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Points = list[tuple[int, str]]


class Board:
    """TensorBoard, and what its own reader finds."""

    def __init__(self, folder: Path, database: Path) -> None:
        pytest.importorskip("tensorboard")
        self._folder = folder / "logs"

    def exporter(self):
        from crashproof.exporters.tensorboard import TensorBoardSink

        return TensorBoardSink(self._folder)

    def points(self, name: str) -> Points:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        reader = EventAccumulator(str(self._folder), size_guidance={"scalars": 0})
        reader.Reload()
        return sorted((each.step, spelled(each.value)) for each in reader.Scalars(name))


class Flow:
    """MLflow, and what its own client finds."""

    def __init__(self, folder: Path, database: Path) -> None:
        pytest.importorskip("mlflow")
        shutil.copy(database, folder / "mlflow.db")
        self._uri = f"sqlite:///{folder}/mlflow.db"

    def exporter(self):
        from crashproof.exporters.mlflow import MLflowSink

        return MLflowSink(self._uri)

    def points(self, name: str) -> Points:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self._uri)
        experiment = client.get_experiment_by_name("crashproof")
        (run,) = client.search_runs([experiment.experiment_id])
        history = client.get_metric_history(run.info.run_id, name.replace("eval/", "eval_"))
        return sorted((each.step, spelled(each.value)) for each in history)


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory) -> Path:
    """A database of MLflow: to create its tables takes seconds."""
    mlflow = pytest.importorskip("mlflow")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(params=[Board, Flow], ids=["tensorboard", "mlflow"])
def tracker_of(request, tmp_path, empty_mlflow):
    return request.param(tmp_path, empty_mlflow)


def exact(*points: tuple[int, float]) -> Points:
    return sorted((step, spelled(value)) for step, value in points)


def rows_of(path: Path) -> dict[int, dict[str, str]]:
    with path.open(newline="") as file:
        return {int(row["step"]): row for row in csv.DictReader(file)}


@pytest.fixture
def train(open_tracker, update, clock):
    """One attempt, evaluated at every tenth step."""

    def report(first: int, last: int, *, name: str = "eval_loss", bias: float = 0.0, **given):
        tracker = open_tracker(total_steps=10_000, **given)
        for step in range(first, last + 1):
            clock.advance(seconds=1)
            update(tracker, step, loss=step / 64)
            if step % 10 == 0:
                tracker.record_evaluation(step, {name: step / 32 + bias})
        return tracker

    return report


@pytest.mark.parametrize(
    "recorded, exported",
    [
        pytest.param("eval_loss", "eval/loss", id="hugging-face"),
        pytest.param("eval_wiki_loss", "eval/wiki_loss", id="one-of-several-data-sets"),
        pytest.param("val_loss", "val_loss", id="lightning"),
        pytest.param("val/loss/dataloader_idx_0", "val/loss/dataloader_idx_0", id="lightning-with-several-loaders"),
        pytest.param("loss", "eval/loss", id="by-hand-with-the-name-of-the-trainings-own"),
        pytest.param("perplexity", "eval/perplexity", id="by-hand"),
    ],
)
def test_an_evaluation_is_in_the_tracker_at_its_step(train, run_dir, tracker_of, recorded, exported):
    train(1, 30, name=recorded)

    replayed = replay(run_dir, tracker_of.exporter())

    assert exact((10, 10 / 32), (20, 20 / 32), (30, 30 / 32)) == tracker_of.points(exported)
    assert exact(*((step, step / 64) for step in range(1, 31))) == tracker_of.points("loss")
    assert (30, 3) == (replayed.num_added, replayed.num_evaluations_added)


def test_several_data_sets_at_one_step_are_all_there(open_tracker, update, run_dir, tracker_of):
    tracker = open_tracker()
    update(tracker, 1)
    tracker.record_evaluation(1, {"eval_wiki_loss": 0.5})
    tracker.record_evaluation(1, {"eval_news_loss": 0.25})

    replay(run_dir, tracker_of.exporter())

    assert exact((1, 0.5)) == tracker_of.points("eval/wiki_loss")
    assert exact((1, 0.25)) == tracker_of.points("eval/news_loss")
    (row,) = crashproof.load(run_dir, engine="pandas").evaluations.to_dict("records")
    assert (0.5, 0.25) == (row["eval_wiki_loss"], row["eval_news_loss"])


def test_an_evaluation_before_training_is_at_step_0(train, open_tracker, run_dir, tracker_of):
    open_tracker(total_steps=10_000).record_evaluation(0, {"eval_loss": 4.0})
    train(1, 10)

    replay(run_dir, tracker_of.exporter())

    assert exact((0, 4.0), (10, 10 / 32)) == tracker_of.points("eval/loss")


def test_an_evaluation_after_the_last_step_is_added_to_what_was_exported(train, run_dir, tracker_of):
    tracker = train(1, 15)
    replay(run_dir, tracker_of.exporter())
    tracker.record_evaluation(15, {"eval_loss": 0.125})
    tracker.close()
    replayed = replay(run_dir, tracker_of.exporter())

    assert (0, 1, False) == (replayed.num_added, replayed.num_evaluations_added, replayed.has_begun_anew)
    assert exact((10, 10 / 32), (15, 0.125)) == tracker_of.points("eval/loss")


def test_a_second_export_adds_no_evaluation_again(train, run_dir, tracker_of):
    train(1, 25)
    replay(run_dir, tracker_of.exporter())
    train(26, 45)
    replay(run_dir, tracker_of.exporter())
    again = replay(run_dir, tracker_of.exporter())

    assert (0, 0, False) == (again.num_added, again.num_evaluations_added, again.has_begun_anew)
    assert exact(*((step, step / 32) for step in (10, 20, 30, 40))) == tracker_of.points("eval/loss")


def test_what_a_resume_supersedes_is_replaced_by_what_it_measures(train, run_dir, tracker_of):
    train(1, 30)
    replay(run_dir, tracker_of.exporter())
    train(16, 40, bias=1.0)
    replay(run_dir, tracker_of.exporter())

    assert exact((10, 10 / 32), *((step, step / 32 + 1) for step in (20, 30, 40))) == tracker_of.points("eval/loss")


def test_a_step_that_is_evaluated_again_has_the_newer_result(train, run_dir, tracker_of):
    tracker = train(1, 10)
    replay(run_dir, tracker_of.exporter())
    tracker.record_evaluation(10, {"eval_loss": 7.0})
    replay(run_dir, tracker_of.exporter())

    assert exact((10, 7.0)) == tracker_of.points("eval/loss")


def test_results_that_are_not_finite_are_exported_once(open_tracker, update, run_dir, tracker_of):
    tracker = open_tracker()
    update(tracker, 1)
    tracker.record_evaluation(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    replay(run_dir, tracker_of.exporter())
    again = replay(run_dir, tracker_of.exporter())

    assert (0, False) == (again.num_evaluations_added, again.has_begun_anew)
    assert [exact((1, value)) for value in (math.nan, math.inf, -math.inf)] == [
        tracker_of.points(f"eval/{name}") for name in "abc"
    ]


def test_two_names_with_the_same_convention_stay_two(open_tracker, update, run_dir, tracker_of):
    tracker = open_tracker()
    update(tracker, 1)
    tracker.record_evaluation(1, {"loss": 1.0})
    replay(run_dir, tracker_of.exporter())
    tracker.record_evaluation(1, {"eval_loss": 2.0})
    replay(run_dir, tracker_of.exporter())

    assert exact((1, 2.0)) == tracker_of.points("eval/loss")
    assert exact((1, 1.0)) == tracker_of.points(f"eval/loss{digest_suffix('loss')}")


def test_beside_a_live_run_an_evaluation_waits_for_its_checkpoint(train, save_checkpoint, run_dir, tracker_of):
    tracker = train(1, 25)
    save_checkpoint(tracker, 15)
    replay(run_dir, tracker_of.exporter(), holds_back=True)

    assert exact((10, 10 / 32)) == tracker_of.points("eval/loss")


def test_tables_have_a_column_for_each_result_and_a_row_for_each_step(train, open_tracker, run_dir, tmp_path):
    open_tracker(total_steps=10_000).record_evaluation(0, {"eval_loss": 4.0})
    tracker = train(1, 12)
    tracker.record_evaluation(12, {"val_loss": 0.5, "loss": math.nan})

    assert 13 == write_csv(run_dir, tmp_path / "run.csv")

    rows = rows_of(tmp_path / "run.csv")
    assert list(range(13)) == list(rows)
    assert ("4.0", "", "1") == (rows[0]["eval_loss"], rows[0]["loss"], rows[0]["attempt"])
    assert ("", repr(5 / 64)) == (rows[5]["eval_loss"], rows[5]["loss"])
    assert ("0.5", repr(12 / 64)) == (rows[12]["val_loss"], rows[12]["loss"])
    assert "NaN" in rows[12].values()


def test_parquet_keeps_whole_numbers_where_a_step_has_an_evaluation_only(train, open_tracker, run_dir, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    open_tracker(total_steps=10_000).record_evaluation(0, {"eval_loss": 4.0})
    train(1, 12)
    write_parquet(run_dir, tmp_path / "run.parquet")

    table = parquet.read_table(tmp_path / "run.parquet")
    assert ("int64", None) == (
        str(table.schema.field("samples_processed").type),
        table["samples_processed"].to_pylist()[0],
    )
    assert [4.0, *[None] * 9, 10 / 32, None, None] == table["eval_loss"].to_pylist()


@pytest.mark.parametrize("engine", ["pandas", "polars"])
def test_frames_have_them_at_their_steps_and_only_those_that_stand(train, run_dir, engine):
    pytest.importorskip(engine)
    train(1, 30)
    train(16, 25, bias=1.0)
    loaded = crashproof.load(run_dir, engine=engine)

    assert [10, 20] == list(loaded.evaluations["step"])
    assert [10 / 32, 20 / 32 + 1] == list(loaded.evaluations["eval_loss"])
    metrics = loaded.metrics
    assert (list(range(1, 26)), 20 / 32 + 1) == (list(metrics["step"]), metrics["eval_loss"][19])


def test_a_result_called_step_takes_no_column_of_ours(open_tracker, update, run_dir):
    pytest.importorskip("pandas")
    tracker = open_tracker()
    update(tracker, 3)
    tracker.record_evaluation(3, {"step": 0.5, "attempt": 1.5, "f1": 0.75})
    loaded = crashproof.load(run_dir, engine="pandas")

    (row,) = loaded.evaluations.to_dict("records")
    assert (3, 1, 0.5, 1.5, 0.75) == tuple(
        row[name] for name in ("step", "attempt", "eval_step", "eval_attempt", "f1")
    )
    (update_row,) = loaded.metrics.to_dict("records")
    assert (3, 0.5, 0.75) == tuple(update_row[name] for name in ("step", "eval_step", "eval_f1"))


def test_the_summary_shows_no_evaluation_that_a_resume_has_superseded(train, run_dir):
    train(1, 30)
    tracker = train(16, 19)

    summary = RunReader.open(run_dir).progress(now=0.0)
    assert (10, {"eval_loss": 10 / 32}) == (summary.evaluation_step, summary.evaluation)
    assert [10] == [each.step for each in RunReader.open(run_dir).evaluations()]
    assert 3 == len(tracker.session.evaluations)


def test_a_loop_that_goes_back_in_one_process_supersedes_its_evaluations(open_tracker, update, run_dir):
    tracker = open_tracker()
    for step in (1, 2, 3, 2):
        update(tracker, step)
        tracker.record_evaluation(step, {"f1": float(len(tracker.session.evaluations))})

    assert [(1, 0.0), (2, 3.0)] == [(each.step, each.results["f1"]) for each in RunReader.open(run_dir).evaluations()]


def test_two_evaluations_at_one_step_are_both_beside_its_checkpoint(open_tracker, update, save_checkpoint, run_dir):
    tracker = open_tracker()
    update(tracker, 1)
    tracker.record_evaluation(1, {"wiki": 0.5})
    save_checkpoint(tracker, 1)
    tracker.record_evaluation(1, {"news": 0.25})

    assert {"wiki": 0.5, "news": 0.25} == tracker.session.checkpoints[1].evaluation


def test_prometheus_has_the_newest_results_by_name(train, run_dir):
    pytest.importorskip("prometheus_client")
    from crashproof.dashboard.prometheus import metrics_page

    train(1, 10, name='eval "loss"\n')
    page, _ = metrics_page({"run": RunReader.open(run_dir).progress(now=0.0)}, accept="text/plain")

    assert rb'crashproof_evaluation{name="eval \"loss\"\n",run="run"} 0.3125' in page
