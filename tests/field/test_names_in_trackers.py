"""Names that a tracker does not allow: kept apart, the same at every export, and said once."""

from __future__ import annotations

import csv
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import crashproof
from crashproof.exporters.replay import replay
from crashproof.exporters.tables import write_csv
from crashproof.rules.naming.evaluations import evaluation_names
from crashproof.rules.naming.trackers import (
    MLFLOW,
    MLFLOW_FOLDING_CASE,
    TENSORBOARD,
    WANDB,
    parameter_names,
    tracker_name,
)

# Of what MLflow asks of SQLAlchemy.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

RULES = [TENSORBOARD, WANDB, MLFLOW, MLFLOW_FOLDING_CASE]
ODD = [
    *("损失", "精度", "map@k", "map_k", "map-k", "/loss", "loss/", "train//loss", "train/_/loss", "..", ".", "../x"),
    *(
        "..x",
        "",
        " ",
        "a\nb",
        "a\tb",
        "a\x00b",
        "loss",
        "Loss",
        "LOSS",
        "step",
        "_step",
        "_runtime",
        "a/./b",
        "a/b/../c",
    ),
    # One letter, written in two ways.
    *("\u00e9", "e\u0301"),
    *("🙂", "%", "%25", "a:b", "a.b", "a b", "x" * 300, "x" * 300 + "y", "损" * 260, "map_k--0123456789ab"),
]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(ODD)


@pytest.mark.parametrize("rule", RULES, ids=["tensorboard", "wandb", "mlflow", "mlflow-folding-case"])
def test_odd_names_stay_apart_and_the_tracker_allows_what_they_become(rule):
    mapped = [tracker_name(name, rule) for name in ODD]

    assert len(set(ODD)) == len(set(mapped))
    assert all(rule.allows(name) for name in mapped)
    if rule.folds_case:
        assert len(set(ODD)) == len({name.lower() for name in mapped})


@pytest.mark.parametrize("rule", RULES, ids=["tensorboard", "wandb", "mlflow", "mlflow-folding-case"])
@given(first=texts, second=texts)
def test_two_names_never_become_one(rule, first, second):
    assert (first == second) is (tracker_name(first, rule) == tracker_name(second, rule))


@given(name=texts)
def test_a_name_that_was_mapped_once_is_not_the_image_of_another(name):
    once = tracker_name(name, MLFLOW)
    twice = tracker_name(once, MLFLOW)

    assert once == name or twice not in (once, name)


@pytest.mark.parametrize(
    "name",
    ["损失", "loss", "Loss", "eval/loss", "a b", "a:b", "a.b", "a-b", "é", "x" * 250],
    ids=lambda name: name[:9],
)
def test_what_mlflow_allows_is_kept_as_it_is(name):
    assert name == tracker_name(name, MLFLOW)


@given(names=st.sets(texts | texts.map("eval_{}".format) | texts.map("eval/{}".format), max_size=8))
def test_conventional_names_of_results_stay_apart_in_whatever_order_they_come(names):
    ordered = [evaluation_names(order, separator="/") for order in itertools.islice(itertools.permutations(names), 6)]

    assert all(each == ordered[0] for each in ordered)
    assert len(names) == len(set(ordered[0].values()))


@pytest.fixture(scope="module")
def mlflow_of_odd_names(tmp_path_factory):
    """MLflow, filled with one run of odd names twice: its metrics, parameters and the log."""
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    from crashproof.exporters.mlflow import MLflowSink

    folder = tmp_path_factory.mktemp("names")
    config = {name: number for number, name in enumerate(ODD)} | {"学习率": 0.1, "/data": 1, "a": {"b": 7}, "a.b": 8}
    config |= {"long": "v" * 10_000, "many": {str(number): number for number in range(250)}, "text": "损" * 5000}
    with crashproof.training_progress_context(config, folder / "run", total_steps=3) as progress:
        for step in range(3):
            components = {name: float(number) for number, name in enumerate(ODD)}
            progress.update_metrics(step, 0.5, components, 0.1, step, step)
            progress.tracker.record_evaluation(step, {"map@k": 0.25, "map_k": 0.5})
    uri = f"sqlite:///{folder}/mlflow.db"
    for _ in range(2):
        replay(folder / "run", MLflowSink(uri))
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("crashproof")
    (run,) = client.search_runs([experiment.experiment_id])
    return run.data, client, run.info.run_id


def test_mlflow_has_each_odd_component_as_a_series_of_its_own(mlflow_of_odd_names):
    data, client, run_id = mlflow_of_odd_names
    names = [tracker_name(f"loss_components/{name}", MLFLOW) for name in ODD]

    assert [float(number) for number in range(len(ODD))] == [data.metrics[name] for name in names]
    assert [0, 1, 2] == sorted(each.step for each in client.get_metric_history(run_id, names[0]))
    assert (0.5, 1.0) == (data.metrics["loss"], data.metrics["loss_components/精度"])


def test_mlflow_has_each_odd_parameter_and_as_much_of_its_value_as_it_takes(mlflow_of_odd_names):
    data, _, _ = mlflow_of_odd_names

    assert ("0.1", "7") == (data.params["学习率"], data.params["a.b"])
    assert "1" == data.params[tracker_name("/data", MLFLOW)]
    assert ("v" * 6000, "损" * 5000) == (data.params["long"], data.params["text"])
    assert [str(number) for number in range(250)] == [data.params[f"many.{number}"] for number in range(250)]
    assert "8" in data.params.values()


def test_mlflow_has_results_of_evaluations_apart(mlflow_of_odd_names):
    data, _, _ = mlflow_of_odd_names

    assert (0.5, 0.25) == (data.metrics["eval_map_k"], data.metrics[tracker_name("eval_map@k", MLFLOW)])


def test_parameters_whose_dotted_names_are_the_same_stay_apart():
    named = parameter_names({"a": {"b": 1, "c": {}}, "a.b": 2, "": {"a": {"b": 3}}, ".a": {"b": 4}, "d": []})

    assert (1, {}, []) == (named["a.b"], named["a.c"], named["d"])
    assert [1, 2, 3, 4] == sorted(value for value in named.values() if isinstance(value, int))


def test_what_a_tracker_does_not_allow_is_said_once(open_tracker, update, run_dir, tmp_path, caplog):
    pytest.importorskip("mlflow")
    from crashproof.exporters.mlflow import MLflowSink

    tracker = open_tracker(config={"values": "v" * 7000})
    exporter = MLflowSink(f"sqlite:///{tmp_path}/mlflow.db")
    for step in range(3):
        update(tracker, step, loss_components={f"map@{number}": 1.0 for number in range(8)})
        replay(run_dir, exporter)

    (said,) = [each for each in caplog.messages if "does not allow" in each]
    assert "MLflow does not allow every name of the run. Exported: 'loss_components/map@0' as 'loss_comp" in said
    assert said.endswith(", and 3 more.")
    (cut,) = [each for each in caplog.messages if "at most 6,000 characters" in each]
    assert "cut: values." in cut


def test_tensorboard_has_each_odd_component_under_its_own_name(open_tracker, update, run_dir, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from crashproof.exporters.tensorboard import TensorBoardSink

    update(open_tracker(), 0, loss_components={name: float(number) for number, name in enumerate(ODD)})
    replay(run_dir, TensorBoardSink(tmp_path / "logs"))

    reader = EventAccumulator(str(tmp_path / "logs"), size_guidance={"scalars": 0})
    reader.Reload()
    kept = [name for name in ODD if name != "map_k--0123456789ab"]
    assert {f"loss_components/{name}" for name in kept} <= set(reader.Tags()["scalars"])
    assert [(0, 1.0)] == [(each.step, each.value) for each in reader.Scalars("loss_components/精度")]


def test_tables_and_frames_have_a_column_for_each_odd_component(open_tracker, update, run_dir, tmp_path):
    pandas = pytest.importorskip("pandas")
    update(open_tracker(), 0, loss_components={name: float(number) for number, name in enumerate(ODD)})
    write_csv(run_dir, tmp_path / "run.csv")

    with (tmp_path / "run.csv").open(newline="") as file:
        header, row = list(csv.reader(file))
    cells = dict(zip(header, row, strict=True))
    assert len(header) == len(set(header))
    assert [float(number) for number in range(len(ODD))] == [float(cells[f"loss_components.{name}"]) for name in ODD]
    frame = crashproof.load(run_dir, engine="pandas").metrics
    assert isinstance(frame, pandas.DataFrame)
    assert (1.0, 2.0) == (frame["loss_components.精度"][0], frame["loss"][0])
