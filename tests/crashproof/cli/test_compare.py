from __future__ import annotations

import json

import pytest


@pytest.fixture
def pair(train, tmp_path):
    one = train(tmp_path / "one", range(1, 301), config={"train": {"lr": 1}, "seed": 0}, total_steps=300)
    losses = dict.fromkeys(range(1, 201), 3.0) | {150: 0.5, 160: float("nan")}
    other = train(
        tmp_path / "other", range(1, 201), config={"train": {"lr": 2}, "seed": 0}, losses=losses, total_steps=400
    )
    return one, other


def test_configs_losses_at_equal_steps_and_the_best_are_put_side_by_side(crashproof, pair):
    answer = json.loads(crashproof("compare", *pair, "--json").output)
    one, other = answer["runs"]

    assert [{"key": "train.lr", "values": ["1", "2"]}] == answer["config_differences"]
    assert [25, 50, 75, 100, 125, 150, 175, 200] == [at["step"] for at in other["at_common_steps"]]
    assert [2.5, 0.0] == [one["at_common_steps"][place]["loss"] for place in (0, 1)]
    assert [3.0, 0.5] == [other["at_common_steps"][place]["loss"] for place in (0, 5)]
    assert {"step": 300, "loss": -25.0} == one["best"]
    assert {"step": 150, "loss": 0.5} == other["best"]
    assert 2.975 == pytest.approx(other["at_common_steps"][5]["mean_of_100"])
    # Of 100 updates up to step 175 one is not finite, and one is 0.5.
    assert (98 * 3 + 0.5) / 99 == pytest.approx(other["at_common_steps"][6]["mean_of_100"])


def test_for_people_it_is_tables_and_curves_on_common_axes(crashproof, pair):
    said = crashproof("compare", *pair)

    assert 0 == said.code
    assert max(map(len, said.lines[2:])) <= 80
    assert [f"a  {pair[0]}", f"b  {pair[1]}"] == said.lines[:2]
    assert ["train.lr", "1", "2"] in [line.split() for line in said.lines]
    assert ["state", "complete", "ended", "early"] in [line.split() for line in said.lines]
    assert ["NaN,", "inf", "!"] in [line.split() for line in said.lines]
    picture = said.lines[said.lines.index("Range of the loss (* marks several runs):") + 1 :]
    assert {"a", "b", "*"} <= set("".join(picture[1:-1]))


def test_runs_of_the_same_config_say_so(crashproof, train, tmp_path):
    one, other = (train(tmp_path / name, range(1, 4)) for name in ("one", "other"))

    assert "The configs are the same." in crashproof("compare", one, other).output


def test_runs_without_a_step_can_be_compared(crashproof, open_tracker, train, tmp_path):
    open_tracker(output_dir=tmp_path / "new").close()
    old = train(tmp_path / "old", range(1, 4))

    said = crashproof("compare", tmp_path / "new", old)

    assert (0, "") == (said.code, said.errors)
    assert "best loss" in said.output
