"""Folders of other frameworks, taken up by `crashproof adopt`: the step is the number of optimizer steps done."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign_checkpoints import (
    adam,
    write_accelerate,
    write_archive,
    write_hugging_face,
    write_safetensors,
    write_state,
)
from typer.testing import CliRunner

from crashproof import RunReader, get_recovery_checkpoint
from crashproof.checkpoints.verify import problem_with
from crashproof.cli.app import app
from crashproof.errors import NothingToAdopt
from crashproof.tracking.adopt import Adoption, adopt_checkpoints

runner = CliRunner()


@pytest.fixture(autouse=True)
def run_dir(run_dir: Path) -> Path:
    """The folder of a run, which other code has made."""
    run_dir.mkdir(exist_ok=True)
    return run_dir


def steps(adoption: Adoption) -> dict[str, int]:
    return {each.checkpoint_path: each.checkpoint_step for each in adoption.adopted}


def write_deepspeed(folder: Path, step: int, *, num_ranks: int = 2, prefix: str = "bf16_") -> Path:
    folder = folder / f"global_step{step}"
    state = {"module": {}, "global_steps": step, "dp_world_size": num_ranks}
    write_state(folder / "mp_rank_00_model_states.pt", state)
    for rank in range(num_ranks):
        write_state(folder / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", {"optimizer_state_dict": {}})
    return folder


def write_megatron(folder: Path, step: int) -> Path:
    folder = folder / f"iter_{step:07}"
    for rank in range(2):
        write_state(folder / f"mp_rank_{rank:02}" / "model_optim_rng.pt", {"iteration": step, "model": {}})
    return folder


def nanogpt(run_dir: Path) -> None:
    write_state(run_dir / "ckpt.pt", {"model": {}, "optimizer": adam(1999), "model_args": {}, "iter_num": 2000})
    # What its data are in, and no checkpoint.
    (run_dir / "train.bin").write_bytes(os.urandom(64))


def deepspeed(run_dir: Path) -> None:
    write_deepspeed(run_dir, 100)
    (run_dir / "latest").write_text("global_step100")
    (run_dir / "zero_to_fp32.py").write_text("")


def deepspeed_with_a_tag_of_its_own(run_dir: Path) -> None:
    write_deepspeed(run_dir, 100).rename(run_dir / "my-tag")
    (run_dir / "latest").write_text("my-tag")


def torchtune(run_dir: Path) -> None:
    for epoch in (0, 1):
        write_safetensors(run_dir / f"epoch_{epoch}" / "model-00001-of-00001.safetensors")
    write_state(run_dir / "recipe_state" / "recipe_state.pt", {"epochs_run": 2, "steps_run": 60, "seed": 1})


def torchtune_by_steps(run_dir: Path) -> None:
    for step in (10, 20):
        write_safetensors(run_dir / f"step_{step}" / "model-00001-of-00001.safetensors")
    write_state(run_dir / "recipe_state" / "recipe_state.pt", {"epochs_run": 0, "steps_run": 20})


def megatron(run_dir: Path) -> None:
    write_megatron(run_dir, 100)
    (run_dir / "latest_checkpointed_iteration.txt").write_text("100\n")


def timm(run_dir: Path) -> None:
    state = {"epoch": 12, "arch": "resnet50", "state_dict": {}, "optimizer": adam(6500)}
    write_state(run_dir / "checkpoint-12.pth.tar", state)


def imagenet_example(run_dir: Path) -> None:
    write_state(run_dir / "checkpoint.pth.tar", {"epoch": 3, "state_dict": {}, "step": 900})


def detectron2(run_dir: Path) -> None:
    state = {"model": {}, "optimizer": {"state": {}, "param_groups": []}, "scheduler": {"last_epoch": 10000}}
    write_state(run_dir / "model_0009999.pth", state | {"iteration": 9999})
    (run_dir / "last_checkpoint").write_text("model_0009999.pth")


def maskrcnn_benchmark(run_dir: Path) -> None:
    write_state(run_dir / "model_0002500.pth", {"model": {}, "scheduler": {"last_epoch": 2500}, "iteration": 2500})


def lightning(run_dir: Path) -> None:
    folder = run_dir / "lightning_logs" / "version_0" / "checkpoints"
    state = {"pytorch-lightning_version": "2.6.0", "global_step": 300, "epoch": 2, "optimizer_states": [adam(300)]}
    write_state(folder / "epoch=2-val_loss=0.25.ckpt", state)
    (folder.parent / "hparams.yaml").write_text("lr: 0.1\n")


def accelerate_in_its_own_place(run_dir: Path) -> None:
    for save, updates in ((0, 500), (1, 1000)):
        folder = write_accelerate(run_dir / "checkpoints", save)
        write_state(folder / "optimizer.bin", adam(updates))


def mmengine(run_dir: Path) -> None:
    write_state(run_dir / "epoch_12.pth", {"meta": {"epoch": 12, "iter": 5000}, "state_dict": {}, "message_hub": {}})
    (run_dir / "last_checkpoint").write_text(str(run_dir / "epoch_12.pth"))


def fairseq(run_dir: Path) -> None:
    history = [{"num_updates": 100}, {"num_updates": 5000}]
    for name in ("checkpoint12.pt", "checkpoint_12_5000.pt", "checkpoint_last.pt"):
        write_state(run_dir / "checkpoints" / name, {"optimizer_history": history, "extra_state": {}, "model": {}})


def ultralytics(run_dir: Path) -> None:
    state = {"epoch": 3, "updates": 400, "optimizer": adam(400), "train_args": {}, "best_fitness": 0.1}
    write_state(run_dir / "weights" / "last.pt", state)


def open_clip(run_dir: Path) -> None:
    write_state(run_dir / "checkpoints" / "epoch_3.pt", {"epoch": 3, "state_dict": {}, "optimizer": adam(750)})


def espnet(run_dir: Path) -> None:
    write_state(
        run_dir / "checkpoint.pth", {"model": {}, "reporter": {}, "optimizers": [adam(321)], "schedulers": []}
    )


def kohya(run_dir: Path) -> None:
    write_safetensors(run_dir / "name-step00000500.safetensors")
    folder = write_accelerate(run_dir, 7).rename(run_dir / "name-step00000500-state")
    (folder / "train_state.json").write_text('{"current_epoch": 1, "current_step": 500}')


def diffusers(run_dir: Path) -> None:
    write_accelerate(run_dir, 500).rename(run_dir / "checkpoint-500")


def composer(run_dir: Path) -> None:
    write_state(run_dir / "ep0-ba100-rank0.pt", {"state": {"model": {}}, "rng": []})
    (run_dir / "latest-rank0.pt").symlink_to("ep0-ba100-rank0.pt")


def speechbrain(run_dir: Path) -> None:
    folder = run_dir / "save" / "CKPT+2024-06-20+17-26-06+00"
    write_archive(folder / "model.ckpt")
    (folder / "brain.ckpt").write_text("avg_train_loss: 0.5\noptimizer_step: 640\nstep: 20\n")
    (folder / "CKPT.yaml").write_text("end-of-epoch: true\n")


def orbax(run_dir: Path) -> None:
    folder = run_dir / "checkpoints" / "200" / "default"
    folder.mkdir(parents=True)
    (folder / "manifest.ocdbt").write_bytes(b"content")
    (folder.parent / "_CHECKPOINT_METADATA").write_text("{}")


def nemo(run_dir: Path) -> None:
    state = {"pytorch-lightning_version": "2.2", "global_step": 100, "optimizer_states": [adam(100)]}
    write_state(run_dir / "checkpoints" / "gpt--val_loss=2.50-step=100-consumed_samples=800.0.ckpt", state)


def a_trainers_folder_under_another_name(run_dir: Path) -> None:
    write_hugging_face(run_dir, 500).rename(run_dir / "best")


def a_loop_that_counts_from_zero(run_dir: Path) -> None:
    write_state(run_dir / "checkpoint_1000.pt", {"step": 999, "model": {}})


def a_number_that_counts_saves(run_dir: Path) -> None:
    write_state(run_dir / "checkpoint_5.pt", {"global_step": 5000, "model": {}})


def a_step_within_the_epoch(run_dir: Path) -> None:
    write_state(run_dir / "checkpoint_5000.pt", {"epoch": 3, "step": 137, "model": {}})


def an_epoch_in_the_name(run_dir: Path) -> None:
    write_state(run_dir / "checkpoint0299.pth", {"epoch": 299, "model": {}, "optimizer": adam(90_000)})


def a_step_in_a_longer_name(run_dir: Path) -> None:
    write_state(run_dir / "saves" / "llama-7b_epoch_1_step_450.pt", {"model": {}})


def step_zero(run_dir: Path) -> None:
    write_state(run_dir / "ckpt.pt", {"model": {}, "model_args": {}, "iter_num": 0})


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (nanogpt, {"ckpt.pt": 2000}),
        (deepspeed, {"global_step100": 100}),
        (deepspeed_with_a_tag_of_its_own, {"my-tag": 100}),
        (torchtune, {"epoch_1": 60}),
        (torchtune_by_steps, {"step_10": 10, "step_20": 20}),
        (megatron, {"iter_0000100": 100}),
        (timm, {"checkpoint-12.pth.tar": 6500}),
        (imagenet_example, {"checkpoint.pth.tar": 900}),
        (detectron2, {"model_0009999.pth": 10_000}),
        (maskrcnn_benchmark, {"model_0002500.pth": 2500}),
        (lightning, {"lightning_logs/version_0/checkpoints/epoch=2-val_loss=0.25.ckpt": 300}),
        (accelerate_in_its_own_place, {"checkpoints/checkpoint_0": 500, "checkpoints/checkpoint_1": 1000}),
        (mmengine, {"epoch_12.pth": 5000}),
        (
            fairseq,
            {
                "checkpoints/checkpoint12.pt": 5000,
                "checkpoints/checkpoint_12_5000.pt": 5000,
                "checkpoints/checkpoint_last.pt": 5000,
            },
        ),
        (ultralytics, {"weights/last.pt": 400}),
        (open_clip, {"checkpoints/epoch_3.pt": 750}),
        (espnet, {"checkpoint.pth": 321}),
        (kohya, {"name-step00000500-state": 500, "name-step00000500.safetensors": 500}),
        (diffusers, {"checkpoint-500": 500}),
        (composer, {"ep0-ba100-rank0.pt": 100}),
        (speechbrain, {"save/CKPT+2024-06-20+17-26-06+00": 640}),
        (orbax, {"checkpoints/200": 200}),
        (nemo, {"checkpoints/gpt--val_loss=2.50-step=100-consumed_samples=800.0.ckpt": 100}),
        (a_trainers_folder_under_another_name, {"best": 500}),
        (a_loop_that_counts_from_zero, {"checkpoint_1000.pt": 1000}),
        (a_number_that_counts_saves, {"checkpoint_5.pt": 5000}),
        (a_step_within_the_epoch, {"checkpoint_5000.pt": 5000}),
        (an_epoch_in_the_name, {"checkpoint0299.pth": 90_000}),
        (a_step_in_a_longer_name, {"saves/llama-7b_epoch_1_step_450.pt": 450}),
        (step_zero, {"ckpt.pt": 0}),
    ],
)
def test_a_known_layout_is_adopted_at_the_steps_done(
    run_dir: Path, build: Callable[[Path], None], expected: dict[str, int]
) -> None:
    build(run_dir)
    adoption = adopt_checkpoints(run_dir)

    assert expected == steps(adoption)
    assert [] == adoption.torn
    folder = RunReader.open(run_dir).folder
    assert {None} == {problem_with(each, folder) for each in adoption.adopted}
    found = get_recovery_checkpoint(run_dir)
    assert found is not None
    assert max(expected.values()) == expected[str(found[0].relative_to(run_dir))]
    assert [] == RunReader.open(run_dir).problems()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def an_accelerate_save_of_an_optimizer_that_counts_nothing(run_dir: Path) -> None:
    for save in (0, 1):
        write_accelerate(run_dir / "checkpoints", save)


def a_lone_second_save_of_accelerate(run_dir: Path) -> None:
    write_accelerate(run_dir, 1)


def weights_alone(run_dir: Path) -> None:
    write_state(run_dir / "pytorch_model.bin", {"layer.weight": 1.0})


def lightning_weights_alone(run_dir: Path) -> None:
    write_state(run_dir / "epoch=1-step=10.ckpt", {"pytorch-lightning_version": "2.6", "global_step": 10})


def a_stripped_model_of_ultralytics(run_dir: Path) -> None:
    write_state(run_dir / "best.pt", {"epoch": -1, "updates": 400, "optimizer": None, "train_args": {}})


def only_an_epoch(run_dir: Path) -> None:
    write_state(run_dir / "checkpoint-12.pth.tar", {"epoch": 12, "state_dict": {}})


def keras(run_dir: Path) -> None:
    (run_dir / "model.weights.h5").write_bytes(b"\x89HDF")


def tensorflow(run_dir: Path) -> None:
    for name in ("ckpt-5.index", "ckpt-5.data-00000-of-00001", "checkpoint"):
        (run_dir / name).write_bytes(b"content")


def flax(run_dir: Path) -> None:
    (run_dir / "checkpoint_1000").write_bytes(b"\x81content")


def an_export_of_nemo(run_dir: Path) -> None:
    (run_dir / "model.nemo").write_bytes(b"content")


def a_torn_file_without_a_step_in_its_name(run_dir: Path) -> None:
    cut(write_state(run_dir / "ckpt.pt", {"iter_num": 5, "model_args": {}}))


def an_unfinished_save_of_an_older_trainer(run_dir: Path) -> None:
    write_hugging_face(run_dir, 500).rename(run_dir / "tmp-checkpoint-500")


def an_unfinished_save_of_a_loop(run_dir: Path) -> None:
    write_state(run_dir / "last.pt.tmp", {"step": 5})


def an_unfinished_save_of_orbax(run_dir: Path) -> None:
    (run_dir / "100.orbax-checkpoint-tmp-1700000000").mkdir()


def a_release_of_megatron(run_dir: Path) -> None:
    write_megatron(run_dir, 1).rename(run_dir / "release")
    for path in (run_dir / "release").rglob("*.pt"):
        write_state(path, {"model": {}})


def a_part_of_a_checkpoint(run_dir: Path) -> None:
    write_state(run_dir / "optimizer.pt", adam(5))


def a_folder_of_an_unknown_framework(run_dir: Path) -> None:
    write_archive(run_dir / "iter_500" / "net_g.pth")


@pytest.mark.parametrize(
    ("build", "path", "reason"),
    [
        (an_accelerate_save_of_an_optimizer_that_counts_nothing, "checkpoints/checkpoint_1", "numbers its saves"),
        (a_lone_second_save_of_accelerate, "checkpoint_1", "numbers its saves"),
        (weights_alone, "pytorch_model.bin", "weights alone"),
        (lightning_weights_alone, "epoch=1-step=10.ckpt", "save_weights_only"),
        (a_stripped_model_of_ultralytics, "best.pt", "without its optimizer"),
        (only_an_epoch, "checkpoint-12.pth.tar", r"names its epoch \(12\)"),
        (keras, "model.weights.h5", "Keras"),
        (tensorflow, "ckpt-5.index", "TensorFlow"),
        (flax, "checkpoint_1000", "file of Flax"),
        (an_export_of_nemo, "model.nemo", "export for NeMo"),
        (a_torn_file_without_a_step_in_its_name, "ckpt.pt", "damaged or cut off"),
        (an_unfinished_save_of_an_older_trainer, "tmp-checkpoint-500", "did not end"),
        (an_unfinished_save_of_a_loop, "last.pt.tmp", "did not end"),
        (an_unfinished_save_of_orbax, "100.orbax-checkpoint-tmp-1700000000", "did not end"),
        (a_release_of_megatron, "release", "nothing in it names its step"),
        (a_part_of_a_checkpoint, "optimizer.pt", "part of a checkpoint"),
        (a_folder_of_an_unknown_framework, "iter_500", "incomplete, or of no framework"),
    ],
)
def test_what_is_not_understood_is_listed_with_the_reason(
    run_dir: Path, build: Callable[[Path], None], path: str, reason: str
) -> None:
    build(run_dir)
    with pytest.raises(NothingToAdopt, match=reason):
        adopt_checkpoints(run_dir)
    write_archive(run_dir / "checkpoint_7777.pt")
    adoption = adopt_checkpoints(run_dir)

    assert {"checkpoint_7777.pt": 7777} == steps(adoption)
    assert path in adoption.not_understood
    output = runner.invoke(app, ["adopt", str(run_dir)], catch_exceptions=False).output
    assert f"  {path}: {adoption.not_understood[path]}; skipped" in output
    assert f"{len(adoption.not_understood)} not understood." in output


def test_a_step_that_only_the_user_knows_is_taken_from_the_command(run_dir: Path) -> None:
    only_an_epoch(run_dir)
    keras(run_dir)
    result = runner.invoke(
        app,
        ["adopt", str(run_dir), "--step", "checkpoint-12.pth.tar=6500", "--step", "model.weights.h5=7000", "--json"],
        catch_exceptions=False,
    )

    assert 0 == result.exit_code, result.output
    told = json.loads(result.output)
    assert {"checkpoint-12.pth.tar": 6500, "model.weights.h5": 7000} == {
        each["checkpoint_path"]: each["checkpoint_step"] for each in told["adopted"]
    }
    assert {} == told["not_understood"]
    assert {"what was given"} == set(told["step_sources"].values())


@pytest.mark.parametrize("option", ["ckpt.pt", "ckpt.pt=", "=5", "ckpt.pt=-1", "ckpt.pt=many"])
def test_a_given_step_that_is_none_is_refused_in_words(run_dir: Path, option: str) -> None:
    nanogpt(run_dir)
    result = runner.invoke(app, ["adopt", str(run_dir), "--step", option], catch_exceptions=False)

    assert (2, True) == (result.exit_code, "PATH=STEP" in result.output)


def test_a_given_step_of_nothing_is_refused(run_dir: Path) -> None:
    nanogpt(run_dir)

    with pytest.raises(NothingToAdopt, match="does not exist"):
        adopt_checkpoints(run_dir, steps={"gone.pt": 5})


def test_where_a_step_comes_from_is_said_if_not_from_the_name(run_dir: Path) -> None:
    timm(run_dir)
    write_state(run_dir / "ckpt.pt", {"iter_num": 7000, "model_args": {}})
    output = runner.invoke(app, ["adopt", str(run_dir)], catch_exceptions=False).output

    assert "intact; the step is from iter_num" in output
    assert "intact; the step is from the updates that its optimizer has counted" in output


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (
            lambda folder: (folder / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink(),
            "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt is missing",
        ),
        (lambda folder: cut(folder / "mp_rank_00_model_states.pt"), "its archive is damaged"),
        (lambda folder: (folder.parent / "latest").write_text("global_step50"), "this save did not end"),
    ],
    ids=["the last rank is missing", "cut off", "latest points at an older one"],
)
def test_an_incomplete_save_of_deepspeed_is_torn(run_dir: Path, harm: Callable[[Path], Any], problem: str) -> None:
    write_deepspeed(run_dir, 50)
    folder = write_deepspeed(run_dir, 100)
    (run_dir / "latest").write_text("global_step100")
    harm(folder)
    adoption = adopt_checkpoints(run_dir)

    assert {"global_step50": 50} == steps(adoption)
    assert [True] == [problem in each.reason for each in adoption.torn]


def test_a_save_of_megatron_that_its_pointer_does_not_know_is_torn(run_dir: Path) -> None:
    write_megatron(run_dir, 100)
    write_megatron(run_dir, 200)
    (run_dir / "latest_checkpointed_iteration.txt").write_text("100")
    adoption = adopt_checkpoints(run_dir)

    assert {"iter_0000100": 100} == steps(adoption)
    assert "latest_checkpointed_iteration.txt beside it names 100" in adoption.torn[0].reason


def test_a_rank_of_megatron_that_is_missing_is_torn(run_dir: Path) -> None:
    write_megatron(run_dir, 50)
    folder = write_megatron(run_dir, 100)
    os.rename(folder / "mp_rank_00", folder / "mp_rank_03")

    assert ["mp_rank_00 is missing"] == [each.reason for each in adopt_checkpoints(run_dir).torn]


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".pth.tar", ".bin"])
@pytest.mark.parametrize("is_archive", [True, False])
def test_a_hostile_pickle_is_read_and_never_executed(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, is_archive: bool
) -> None:
    monkeypatch.chdir(run_dir)
    state = {"global_step": 5, "model": Attack(), "optimizer_states": [Attack()]}
    path = run_dir / f"model{suffix}"
    if is_archive:
        write_state(path, state)
    else:
        path.write_bytes(pickle.dumps(state))
    adopt_checkpoints(run_dir)

    assert not (run_dir / "attacked").exists()
    assert {5} == {each.checkpoint_step for each in RunReader.open(run_dir).session().checkpoints.values()}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x80\x02" + b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", id="bytes without end"),
        pytest.param(b"\x80\x02" + b"(" * 100_000, id="marks without end"),
        pytest.param(b"\x80\x02]" + b"(" * 50_000 + b"t" * 49_000, id="nesting"),
        pytest.param(b"\x80\x02K\x05.", id="a number"),
        pytest.param(b"\x80\x02cbuiltins\nexec\n(X\x04\x00\x00\x00pass", id="cut off in a call"),
        pytest.param(b"not a pickle", id="text"),
        pytest.param(b"", id="empty"),
    ],
)
def test_garbage_under_a_checkpoints_name_ends_in_a_reason(run_dir: Path, content: bytes) -> None:
    (run_dir / "ckpt.pt").write_bytes(content)
    write_archive(run_dir / "checkpoint_5.pt")

    assert ["ckpt.pt"] == list(adopt_checkpoints(run_dir).not_understood)


def test_pipes_and_dangling_links_under_a_checkpoints_name_are_listed(run_dir: Path) -> None:
    os.mkfifo(run_dir / "last.ckpt")
    (run_dir / "best.ckpt").symlink_to(run_dir / "gone.ckpt")
    write_archive(run_dir / "checkpoint_5.pt")

    assert ["best.ckpt", "last.ckpt"] == list(adopt_checkpoints(run_dir).not_understood)


def test_a_link_to_a_checkpoint_is_the_same_one(run_dir: Path) -> None:
    nanogpt(run_dir)
    (run_dir / "last.pt").symlink_to("ckpt.pt")
    adoption = adopt_checkpoints(run_dir)

    assert {"ckpt.pt": 2000} == steps(adoption)
    assert {"last.pt": "it is a link to ckpt.pt"} == adoption.not_understood


def test_a_file_that_the_old_code_writes_over_is_adopted_again_at_its_new_step(run_dir: Path) -> None:
    write_state(run_dir / "ckpt.pt", {"iter_num": 100, "model_args": {}})
    adopt_checkpoints(run_dir)
    again = adopt_checkpoints(run_dir)
    write_state(run_dir / "ckpt.pt", {"iter_num": 200, "model_args": {}, "more": 1})
    later = adopt_checkpoints(run_dir)

    assert ({}, 1) == (steps(again), again.num_known)
    assert {"ckpt.pt": 200} == steps(later)
    assert (run_dir / "ckpt.pt", 0) == get_recovery_checkpoint(run_dir)


def test_an_adopted_file_that_is_torn_by_the_next_save_is_offered_from_what_was_kept(run_dir: Path) -> None:
    nanogpt(run_dir)
    content = (run_dir / "ckpt.pt").read_bytes()
    adopt_checkpoints(run_dir)
    cut(run_dir / "ckpt.pt")
    found = get_recovery_checkpoint(run_dir)

    assert found is not None
    assert content == found[0].read_bytes()


def test_of_lightnings_versions_the_newest_with_a_checkpoint_counts(run_dir: Path) -> None:
    state = {"pytorch-lightning_version": "2.6", "optimizer_states": [adam(1)]}
    for version, step in ((0, 900), (1, 300)):
        folder = run_dir / "lightning_logs" / f"version_{version}" / "checkpoints"
        write_state(folder / f"epoch=0-step={step}.ckpt", state | {"global_step": step})
    (run_dir / "lightning_logs" / "version_2").mkdir()
    adoption = adopt_checkpoints(run_dir)

    assert {"lightning_logs/version_1/checkpoints/epoch=0-step=300.ckpt": 300} == steps(adoption)
    assert {
        "lightning_logs/version_0/checkpoints/epoch=0-step=900.ckpt": "it is of version_0, and version_1 is newer"
    } == (adoption.not_understood)


def test_other_runs_in_the_folder_are_named_and_not_mixed_in(run_dir: Path) -> None:
    for name in ("first", "second"):
        write_archive(run_dir / name / "checkpoints" / "checkpoint_5.pt")
    with pytest.raises(NothingToAdopt, match="first: it looks like a run of its own, with 1"):
        adopt_checkpoints(run_dir)
    write_archive(run_dir / "checkpoint_3.pt")
    adoption = adopt_checkpoints(run_dir)

    assert {"checkpoint_3.pt": 3} == steps(adoption)
    assert ["first", "second"] == list(adoption.not_understood)


def test_the_only_run_below_a_folder_is_the_one_that_is_meant(run_dir: Path) -> None:
    write_archive(run_dir / "project" / "x1y2z3" / "checkpoints" / "checkpoint_5.pt")

    assert {"project/x1y2z3/checkpoints/checkpoint_5.pt": 5} == steps(adopt_checkpoints(run_dir))


def test_a_run_of_its_own_below_is_left_alone(run_dir: Path) -> None:
    write_archive(run_dir / "inner" / "checkpoint_5.pt")
    adopt_checkpoints(run_dir / "inner")

    with pytest.raises(NothingToAdopt, match="inner: it is a run of its own"):
        adopt_checkpoints(run_dir)


def test_results_and_data_beside_checkpoints_are_not_taken_for_one(run_dir: Path) -> None:
    for name in ("metrics.json", "notes.txt", "samples.npz", "vocab.json", "training_args.bin", ".DS_Store"):
        (run_dir / name).write_bytes(b"content")
    write_archive(run_dir / "checkpoint_5.pt")
    adoption = adopt_checkpoints(run_dir)

    assert ({"checkpoint_5.pt": 5}, {}) == (steps(adoption), adoption.not_understood)


def test_a_folder_of_very_many_files_is_named_and_not_gone_through(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crashproof.checkpoints.foreign.survey._MOST_ENTRIES", 20)
    for number in range(21):
        write_archive(run_dir / "data" / f"image_{number}.pt")
    write_archive(run_dir / "checkpoint_5.pt")

    assert {"data": "it holds more than 20 files, and was not gone through"} == (
        adopt_checkpoints(run_dir).not_understood
    )


def test_of_very_many_files_a_few_are_named_and_the_rest_counted(run_dir: Path) -> None:
    for number in range(25):
        write_state(run_dir / "features" / f"sample{number:02}.pt", {"x": 1.0})
    write_archive(run_dir / "checkpoint_5.pt")
    passed_over = adopt_checkpoints(run_dir).not_understood

    assert (21, "5 more in this folder are not understood") == (len(passed_over), passed_over["features/*"])


def test_a_folder_below_that_may_not_be_listed_is_named(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(run_dir / "checkpoint_5.pt")
    (run_dir / "private").mkdir()
    listed = Path.iterdir

    def refuse(path: Path) -> Any:
        if path.name == "private":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    # Whoever runs the tests may be root, who may list everything.
    monkeypatch.setattr(Path, "iterdir", refuse)

    assert {"private": "it cannot be read (Permission denied)"} == adopt_checkpoints(run_dir).not_understood


def test_what_torch_saves_itself_is_read(run_dir: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(7):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    state = {"model": model, "optimizer": optimizer.state_dict(), "epoch": 1}
    torch.save(state, run_dir / "epoch_1.pt")
    torch.save(state, run_dir / "epoch_2.pt", _use_new_zipfile_serialization=False)
    torch.save({"iter_num": torch.tensor(42), "model_args": {}}, run_dir / "ckpt.pt")
    adoption = adopt_checkpoints(run_dir)

    assert {"epoch_1.pt": 7, "ckpt.pt": 42} == steps(adoption)
    # Its tensors lie behind the pickle, where the count of updates is not read.
    assert "names its epoch" in adoption.not_understood["epoch_2.pt"]


def test_a_real_save_of_accelerate_is_adopted_at_its_step_and_not_at_its_number(run_dir: Path) -> None:
    torch = pytest.importorskip("torch")
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(
        cpu=True,
        project_config=accelerate.utils.ProjectConfiguration(
            project_dir=str(run_dir), automatic_checkpoint_naming=True
        ),
    )
    model = torch.nn.Linear(2, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    for step in range(1, 11):
        accelerator.backward(model(torch.ones(1, 2)).sum())
        optimizer.step()
        if step % 5 == 0:
            accelerator.save_state()
    accelerator.free_memory()

    assert {"checkpoints/checkpoint_0": 5, "checkpoints/checkpoint_1": 10} == steps(adopt_checkpoints(run_dir))
