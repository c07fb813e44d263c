"""Runs that are started again the way people start them again: the same run, and where it is another, the way out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from crashproof import (
    ProgressTracker,
    RunReader,
    get_recovery_checkpoint,
    setup_progress_tracking,
    training_progress_context,
)
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.errors import ConfigChanged, ConfigError
from crashproof.records.events import ConfigContinued

BASE = "/mnt/a/models/tiny"
MISSING = "(missing)"


def session_of(run_dir: Path, config: dict[str, Any], **options: Any) -> str:
    """Start once, end at once, and return the session's name."""
    tracker = ProgressTracker(run_dir / "progress", config, 10, **options)
    tracker.close()
    return tracker.session.session_id


def messages_of(caplog: pytest.LogCaptureFixture, level: int) -> str:
    return "\n".join(each.getMessage() for each in caplog.records if each.levelno == level)


def test_more_epochs_continue_the_run_and_what_changes_is_said_once(run_dir, caplog):
    config = {"train": {"epochs": 3, "lr_scheduler": "cosine"}}
    first = session_of(run_dir, config)
    longer = {"train": config["train"] | {"epochs": 5}}
    caplog.set_level(logging.INFO)

    assert first == session_of(run_dir, longer)
    assert "train.epochs: 3 → 5 (how long to train)" in messages_of(caplog, logging.INFO)
    assert 1 == messages_of(caplog, logging.WARNING).count("a learning-rate schedule")
    caplog.clear()
    assert first == session_of(run_dir, longer)
    assert "train.epochs" not in caplog.text
    assert longer == RunReader.open(run_dir).session().config


def test_a_config_module_with_the_time_in_its_run_name_continues_the_run(run_dir):
    config = {"wandb_run_name": "ft-1700000000.1", "init_from": "gpt2-xl", "lr": 3e-5, "dataset": "shakespeare"}
    first = session_of(run_dir, config)

    assert first == session_of(run_dir, config | {"wandb_run_name": "ft-1700000999.9", "init_from": "resume"})
    assert first == session_of(run_dir, config | {"wandb_run_name": "ft-1700001999.9", "init_from": "resume"})
    assert first != session_of(run_dir, config | {"dataset": "openwebtext", "init_from": "resume"})


def test_the_message_of_an_archived_run_says_which_argument_keeps_it(run_dir, caplog):
    session_of(run_dir, {"lr": 1, "extra": {"x": 1}})

    session_of(run_dir, {"lr": 2, "extra": {"x": 2}})

    assert 'pass ignore_config_keys=["extra.x", "lr"] or on_config_change="continue"' in caplog.text


def test_the_message_names_a_few_of_many_keys(run_dir, caplog):
    session_of(run_dir, {})

    session_of(run_dir, {f"k{n}": n for n in range(1, 9)})

    assert 'ignore_config_keys=["k1", "k2", "k3", "k4", "k5", …]' in caplog.text


def test_keys_that_a_user_names_continue_the_run_in_every_way_to_open_it(run_dir):
    before, after = {"lr": 1, "data": {"a": {"path": "u"}}}, {"lr": 1, "data": {"a": {"path": "v"}}}
    ignored = ["data.*.path"]
    first = session_of(run_dir, before)
    with training_progress_context(before, run_dir, 10) as progress:
        path = run_dir / "checkpoint_1.pt"
        path.write_bytes(b"x")
        progress.record_checkpoint(1, path, 1)

    assert get_recovery_checkpoint(run_dir, after) is None
    assert (path, 1) == get_recovery_checkpoint(run_dir, after, ignore_config_keys=ignored)
    assert first == session_of(run_dir, after, ignore_config_keys=ignored)
    with setup_progress_tracking(before, run_dir, 10, ignore_config_keys=ignored) as progress:
        assert first == progress.tracker.session.session_id
    with training_progress_context(after, run_dir, 10, ignore_config_keys=ignored) as progress:
        assert first == progress.tracker.session.session_id


@pytest.mark.parametrize("ignored", [3, [3], [""], {"a": 1}, b"a", None])
def test_what_names_no_keys_is_refused_in_words_before_anything_is_written(run_dir, ignored):
    with pytest.raises(ConfigError, match="ignore_config_keys must be a list of texts"):
        session_of(run_dir, {}, ignore_config_keys=ignored)

    assert not run_dir.exists()


def test_an_error_on_another_config_says_how_to_keep_the_run(run_dir):
    session_of(run_dir, {"lr": 1})

    with pytest.raises(ConfigChanged, match=r'ignore_config_keys=\["lr"\] or on_config_change="continue"'):
        session_of(run_dir, {"lr": 2}, on_config_change="error")


def test_what_changed_without_counting_is_recorded_with_its_reason(run_dir):
    session_of(run_dir, {"num_workers": 4})
    session_of(run_dir, {"num_workers": 8})

    events = [each for each in RunReader.open(run_dir).events() if isinstance(each, ConfigContinued)]
    assert [["num_workers: 4 → 8 (which processes and devices train)"]] == [each.changed for each in events]


def test_half_the_processes_with_twice_the_accumulation_continue_the_run(run_dir, caplog):
    config = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "world_size": 4}
    first = session_of(run_dir, config)

    assert first == session_of(run_dir, config | {"gradient_accumulation_steps": 4, "world_size": 2})
    assert "equal up to rounding and not bit for bit" in caplog.text


def test_a_trainers_config_names_keys_that_do_not_count():
    config = load_config(KdConfig, [], ["progress.ignore_config_keys=[train.seed, 'data.*']"])

    assert ("train.seed", "data.*") == config.progress.ignore_config_keys


def test_accelerate_with_all_arguments_as_its_config_resumes_from_the_latest_checkpoint(run_dir):
    accelerate = pytest.importorskip("accelerate")
    from crashproof.adapters.accelerate import CrashproofTracker

    arguments = {"learning_rate": 1e-4, "resume_from_checkpoint": None, "report_to": "tensorboard", "cache_dir": None}
    arguments |= {"local_rank": -1, "dataloader_num_workers": 8, "num_train_epochs": 1, "custom": 1}
    again = arguments | {"resume_from_checkpoint": "latest", "report_to": "wandb", "cache_dir": "/mnt/b"}
    again |= {"local_rank": 0, "dataloader_num_workers": 2, "num_train_epochs": 3}

    def start(config: dict[str, Any], **options: Any) -> None:
        tracker = CrashproofTracker(run_dir, total_steps=10, **options)
        accelerator = accelerate.Accelerator(cpu=True, log_with=tracker)
        try:
            accelerator.init_trackers("mine", config=config)
        finally:
            tracker.finish()

    start(arguments)
    start(again)
    with pytest.raises(ConfigChanged, match=r'ignore_config_keys=\["custom"\].*use another output folder'):
        start(again | {"custom": 2})
    start(again | {"custom": 2}, ignore_config_keys=["custom"])
    with pytest.raises(ConfigChanged, match="learning_rate"):
        start(again | {"learning_rate": 1e-3, "custom": 2})


def test_lightning_takes_the_keys_too(run_dir):
    pytest.importorskip("lightning")
    from crashproof.adapters.lightning import Crashproof

    first = Crashproof(run_dir, config={"lr": 1})
    first._shared.run.open({"lr": 1, "x": 1}, 10).close()

    Crashproof(run_dir, ignore_config_keys=["x"])._shared.run.open({"lr": 1, "x": 2}, 10).close()
    with pytest.raises(ConfigError, match="ignore_config_keys"):
        Crashproof(run_dir, ignore_config_keys=[7])


@pytest.fixture
def lora(tmp_path: Path) -> Any:
    """A maker of callbacks around a small LoRA run, with what differs from start to start."""
    pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from crashproof.adapters.transformers import CrashproofCallback

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    data = [{"input_ids": torch.arange(4), "labels": torch.arange(4)}] * 16

    def make(base: str = BASE, *, rank: int = 2, adapter: dict[str, Any] | None = None, **arguments: Any) -> Any:
        torch.manual_seed(0)
        settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2}
        settings |= {"save_steps": 1, "report_to": "none", "disable_tqdm": True, "use_cpu": True} | arguments
        adapters = peft.LoraConfig(r=rank, target_modules=["q_proj"], task_type="CAUSAL_LM")
        model = peft.get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=16, **shape)), adapters)
        own = model.peft_config["default"]
        own.base_model_name_or_path = base
        complete = own.to_dict
        own.to_dict = lambda: {k: v for k, v in (complete() | (adapter or {})).items() if v != MISSING}
        trainer = Trainer(model, TrainingArguments(output_dir=str(tmp_path / "run"), **settings), train_dataset=data)
        return CrashproofCallback(trainer, on_config_change="error")

    return make


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_lora_run_on_another_mount_and_with_other_versions_resumes(lora):
    older = {
        "peft_version": "0.14.0",
        "qalora_group_size": MISSING,
        "use_qalora": MISSING,
        "runtime_config": {"a": 1},
    }
    older |= {"ensure_weight_tying": MISSING, "target_parameters": MISSING, "lora_ga_config": MISSING}
    lora(adapter=older)._trainer.train()

    assert lora("/scratch/b/models/tiny").newest_checkpoint().endswith("checkpoint-2")
    assert lora(max_steps=9, num_train_epochs=7, dataloader_num_workers=1).newest_checkpoint()
    assert lora(gradient_accumulation_steps=1, per_device_train_batch_size=4).newest_checkpoint()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "other, key",
    [
        ({"base": "/mnt/a/models/other"}, "base_model_name_or_path"),
        ({"rank": 4}, "adapters.default.r"),
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"warmup_steps": 5}, "warmup_steps"),
        ({"seed": 2}, "seed"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps"),
    ],
)
def test_another_lora_run_is_refused_with_the_key_that_differs(lora, other, key):
    lora()._trainer.train()

    with pytest.raises(ConfigChanged, match=key):
        lora(**other).newest_checkpoint()
