"""The configs that people have, changed in ways that continue a run and in ways that begin another one."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from crashproof.rules.identity import IdentityRules, canonical_config, compare_configs

NANOGPT = {
    "out_dir": "out-shakespeare",
    "eval_interval": 5,
    "eval_iters": 40,
    "log_interval": 1,
    "eval_only": False,
    "always_save_checkpoint": False,
    "init_from": "scratch",
    "wandb_log": False,
    "wandb_project": "shakespeare",
    "wandb_run_name": "ft-1700000000.1234",
    "dataset": "shakespeare",
    "gradient_accumulation_steps": 32,
    "batch_size": 1,
    "block_size": 1024,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "dropout": 0.0,
    "bias": False,
    "learning_rate": 3e-5,
    "max_iters": 20,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "grad_clip": 1.0,
    "decay_lr": False,
    "warmup_iters": 2000,
    "lr_decay_iters": 600000,
    "min_lr": 6e-5,
    "backend": "nccl",
    "device": "cuda",
    "dtype": "bfloat16",
    "compile": True,
}

ARGPARSE_OF_DIFFUSERS = {
    "pretrained_model_name_or_path": "runwayml/stable-diffusion-v1-5",
    "revision": None,
    "dataset_name": "lambdalabs/naruto-blip-captions",
    "train_data_dir": None,
    "output_dir": "sd-naruto-lora",
    "cache_dir": None,
    "seed": 42,
    "resolution": 512,
    "random_flip": True,
    "train_batch_size": 1,
    "num_train_epochs": 100,
    "max_train_steps": 15000,
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": False,
    "learning_rate": 1e-4,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 0,
    "snr_gamma": None,
    "use_8bit_adam": False,
    "dataloader_num_workers": 8,
    "adam_beta1": 0.9,
    "adam_weight_decay": 1e-2,
    "max_grad_norm": 1.0,
    "push_to_hub": False,
    "hub_token": None,
    "logging_dir": "logs",
    "mixed_precision": "fp16",
    "report_to": "tensorboard",
    "local_rank": -1,
    "checkpointing_steps": 500,
    "checkpoints_total_limit": None,
    "resume_from_checkpoint": None,
    "enable_xformers_memory_efficient_attention": False,
    "validation_prompt": "a ninja",
    "num_validation_images": 4,
    "validation_epochs": 1,
    "rank": 4,
}

LIGHTNING = {
    "seed_everything": 1,
    "trainer": {
        "accelerator": "gpu",
        "strategy": "ddp",
        "devices": 8,
        "num_nodes": 1,
        "precision": "bf16-mixed",
        "max_epochs": 100,
        "max_steps": -1,
        "max_time": None,
        "val_check_interval": 1.0,
        "check_val_every_n_epoch": 1,
        "num_sanity_val_steps": 2,
        "log_every_n_steps": 50,
        "enable_progress_bar": True,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 1.0,
        "default_root_dir": "/scratch/ann/runs",
        "logger": {"class_path": "WandbLogger", "init_args": {"project": "p", "name": "run-1"}},
        "callbacks": [
            {"class_path": "ModelCheckpoint", "model_checkpoint": {"dirpath": "a", "monitor": "val_loss"}},
            {"class_path": "EMA", "decay": 0.999},
        ],
    },
    "model": {"name": "resnet50", "lr": 1e-3, "dropout": 0.1, "optimizer": {"lr": 1e-3, "max_iter": 20}},
    "data": {"data_dir": "/mnt/a/imagenet", "batch_size": 64, "num_workers": 8, "pin_memory": True, "fold": 0},
    "ckpt_path": None,
}

HYDRA = {
    "task_name": "train",
    "tags": ["dev"],
    "hydra": {"run": {"dir": "outputs/2026-01-31/10-00-00"}, "job": {"num": 1}},
    "paths": {"root_dir": "/home/ann/p", "data_dir": "/home/ann/p/mnist", "log_dir": "logs", "work_dir": "/home/ann"},
    "datamodule": {"_target_": "MNIST", "batch_size": 128, "train_val_test_split": [55000, 5000, 10000]},
    "module": {
        "optimizer": {"_target_": "Adam", "lr": 0.001},
        "scheduler": {"retry_policy": 10, "T_max": 10},
    },
    "callbacks": {"early_stopping": {"retry_policy": 100}, "rich_progress_bar": {"refresh_rate": 1}},
    "logger": {"wandb": {"project": "lightning-hydra", "group": ""}},
    "trainer": {"min_epochs": 1, "max_epochs": 10, "devices": 1, "accelerator": "cpu"},
    "extras": {"print_config": True},
}

DEEPSPEED = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 4,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95]}},
    "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 100, "total_num_steps": 1000}},
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": 5e8},
    "steps_per_print": 10,
    "wall_clock_breakdown": False,
    "flops_profiler": {"enabled": False},
    "activation_checkpointing": {"partition_activations": False},
}

TORCHTITAN = {
    "job": {"dump_folder": "./outputs", "description": "Llama 3 8B"},
    "profiling": {"enable_profiling": True, "save_traces_folder": "profile_trace"},
    "metrics": {"log_freq": 10, "enable_tensorboard": True},
    "model": {"name": "llama3", "flavor": "8B", "hf_assets_path": "./assets/hf/Llama-3.1-8B"},
    "optimizer": {"name": "AdamW", "lr": 3e-4, "eps": 1e-8},
    "lr_scheduler": {"warmup_steps": 200, "decay_ratio": 0.8},
    "training": {
        "local_batch_size": 1,
        "global_batch_size": 64,
        "seq_len": 8192,
        "max_norm": 1.0,
        "steps": 1000,
        "dataset": "c4",
    },
    "parallelism": {"data_parallel_shard_degree": -1, "tensor_parallel_degree": 1},
    "checkpoint": {"folder": "checkpoint", "interval": 500, "initial_load_path": "/mnt/a/llama-seed"},
    "compile": {"enable": False},
    "activation_checkpoint": {"mode": "selective"},
    "validation": {"freq": 500, "steps": 1200},
}

AXOLOTL = {
    "base_model": "/mnt/a/models/Llama-3.2-1B",
    "datasets": [{"path": "/mnt/a/data/alpaca.jsonl", "type": "alpaca"}],
    "dataset_prepared_path": "last_run_prepared",
    "val_set_size": 0.1,
    "output_dir": "./outputs/lora-out",
    "adapter": "lora",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "sequence_len": 2048,
    "wandb_project": None,
    "wandb_name": None,
    "gradient_accumulation_steps": 2,
    "micro_batch_size": 2,
    "num_epochs": 1,
    "optimizer": "adamw_8bit",
    "lr_scheduler": "cosine",
    "learning_rate": 0.0002,
    "gradient_checkpointing": True,
    "resume_from_checkpoint": None,
    "logging_steps": 1,
    "flash_attention": True,
    "warmup_ratio": 0.1,
    "evals_per_epoch": 4,
    "saves_per_epoch": 1,
    "special_tokens": {"pad_token": "<|end_of_text|>"},
    "deepspeed": "deepspeed_configs/zero2.json",
    "early_stopping_patience": 3,
}

LLAMA_FACTORY = {
    "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "all",
    "dataset": "identity,alpaca_en_demo",
    "dataset_dir": "/data/ann/LLaMA-Factory/data",
    "template": "llama3",
    "cutoff_len": 2048,
    "max_samples": 1000,
    "overwrite_cache": True,
    "preprocessing_num_workers": 16,
    "dataloader_num_workers": 4,
    "output_dir": "saves/llama3-8b/lora/sft",
    "logging_steps": 10,
    "save_steps": 500,
    "plot_loss": True,
    "overwrite_output_dir": True,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": 1.0e-4,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "ddp_timeout": 180000000,
    "val_size": 0.1,
    "eval_strategy": "steps",
    "eval_steps": 500,
    "transformers_version": "4.52.4",
    "peft_version": "0.15.2",
}

CLEANRL = {
    "exp_name": "ppo",
    "seed": 1,
    "torch_deterministic": True,
    "cuda": True,
    "track": False,
    "wandb_project_name": "cleanRL",
    "capture_video": False,
    "env_id": "CartPole-v1",
    "total_timesteps": 500000,
    "learning_rate": 2.5e-4,
    "num_envs": 4,
    "num_steps": 128,
    "n_epochs": 10,
    "update_epochs": 4,
    "clip_coef": 0.2,
}

MMENGINE = {
    "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": 12, "val_interval": 1},
    "param_scheduler": [{"type": "MultiStepLR", "milestones": [8, 11], "end": 12}],
    "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.02, "momentum": 0.9}},
    "load_from": "/mnt/a/faster_rcnn_r50.pth",
    "resume": False,
    "work_dir": "work_dirs/frcnn",
    "SOLVER": {"MAX_ITER": 90000, "STEPS": [60000, 80000], "BASE_LR": 0.02},
}

MEGATRON = {
    "train-iters": 500000,
    "lr-decay-iters": 320000,
    "lr-warmup-fraction": 0.01,
    "micro-batch-size": 4,
    "global-batch-size": 16,
    "tensor-model-parallel-size": 2,
    "save": "/checkpoints/a",
    "load": "/checkpoints/a",
    "save-interval": 1000,
    "exit-duration-in-mins": 230,
    "data-path": ["0.5", "/mnt/a/pile_text_document", "0.5", "/mnt/a/wiki_text_document"],
    "hidden-size": 1024,
    "init-method-std": 0.02,
}

CONTINUES = [
    (NANOGPT, "wandb_run_name", "ft-1700009999.5678"),
    (NANOGPT, "init_from", "resume"),
    (NANOGPT, "max_iters", 40),
    (NANOGPT, "out_dir", "/scratch/out"),
    (NANOGPT, "eval_interval", 50),
    (NANOGPT, "eval_iters", 20),
    (NANOGPT, "log_interval", 10),
    (NANOGPT, "wandb_log", True),
    (NANOGPT, "always_save_checkpoint", True),
    (NANOGPT, "backend", "gloo"),
    (NANOGPT, "device", "cpu"),
    (NANOGPT, "compile", False),
    (ARGPARSE_OF_DIFFUSERS, "resume_from_checkpoint", "latest"),
    (ARGPARSE_OF_DIFFUSERS, "report_to", "wandb"),
    (ARGPARSE_OF_DIFFUSERS, "cache_dir", "/mnt/b/cache"),
    (ARGPARSE_OF_DIFFUSERS, "local_rank", 0),
    (ARGPARSE_OF_DIFFUSERS, "dataloader_num_workers", 2),
    (ARGPARSE_OF_DIFFUSERS, "num_train_epochs", 200),
    (ARGPARSE_OF_DIFFUSERS, "max_train_steps", 30000),
    (ARGPARSE_OF_DIFFUSERS, "checkpointing_steps", 100),
    (ARGPARSE_OF_DIFFUSERS, "checkpoints_total_limit", 3),
    (ARGPARSE_OF_DIFFUSERS, "validation_epochs", 5),
    (ARGPARSE_OF_DIFFUSERS, "validation_prompt", "a cat"),
    (ARGPARSE_OF_DIFFUSERS, "num_validation_images", 1),
    (ARGPARSE_OF_DIFFUSERS, "push_to_hub", True),
    (ARGPARSE_OF_DIFFUSERS, "hub_token", "hf_abcdefghijklmnopqrst"),
    (ARGPARSE_OF_DIFFUSERS, "gradient_checkpointing", True),
    (ARGPARSE_OF_DIFFUSERS, "enable_xformers_memory_efficient_attention", True),
    (LIGHTNING, "trainer.max_epochs", 200),
    (LIGHTNING, "trainer.max_time", "00:12:00:00"),
    (LIGHTNING, "trainer.devices", 4),
    (LIGHTNING, "trainer.strategy", "fsdp"),
    (LIGHTNING, "trainer.default_root_dir", "/scratch/bob/runs"),
    (LIGHTNING, "trainer.logger.init_args.name", "run-2"),
    (LIGHTNING, "trainer.callbacks.0.model_checkpoint.dirpath", "b"),
    (LIGHTNING, "trainer.log_every_n_steps", 10),
    (LIGHTNING, "trainer.enable_progress_bar", False),
    (LIGHTNING, "trainer.val_check_interval", 0.5),
    (LIGHTNING, "data.num_workers", 0),
    (LIGHTNING, "data.pin_memory", False),
    (LIGHTNING, "data.data_dir", "/mnt/b/imagenet"),
    (LIGHTNING, "ckpt_path", "/scratch/last.ckpt"),
    (HYDRA, "hydra.run.dir", "outputs/2026-02-01/11-00-00"),
    (HYDRA, "hydra.job.num", 2),
    (HYDRA, "tags", ["dev", "again"]),
    (HYDRA, "paths.root_dir", "/home/bob/p"),
    (HYDRA, "paths.data_dir", "/home/bob/p/mnist"),
    (HYDRA, "paths.log_dir", "/tmp/logs"),
    (HYDRA, "callbacks.early_stopping.retry_policy", 10),
    (HYDRA, "callbacks.rich_progress_bar.refresh_rate", 5),
    (HYDRA, "logger.wandb.group", "g"),
    (HYDRA, "trainer.min_epochs", 2),
    (DEEPSPEED, "zero_optimization.stage", 3),
    (DEEPSPEED, "zero_optimization.offload_optimizer.device", "none"),
    (DEEPSPEED, "steps_per_print", 100),
    (DEEPSPEED, "flops_profiler.enabled", True),
    (DEEPSPEED, "wall_clock_breakdown", True),
    (TORCHTITAN, "job.dump_folder", "/scratch/outputs"),
    (TORCHTITAN, "job.description", "again"),
    (TORCHTITAN, "metrics.log_freq", 1),
    (TORCHTITAN, "metrics.enable_tensorboard", False),
    (TORCHTITAN, "profiling.enable_profiling", False),
    (TORCHTITAN, "training.steps", 2000),
    (TORCHTITAN, "parallelism.tensor_parallel_degree", 2),
    (TORCHTITAN, "checkpoint.interval", 100),
    (TORCHTITAN, "checkpoint.initial_load_path", "/mnt/b/llama-seed"),
    (TORCHTITAN, "compile.enable", True),
    (TORCHTITAN, "activation_checkpoint.mode", "full"),
    (TORCHTITAN, "validation.freq", 100),
    (TORCHTITAN, "training.local_batch_size", 2),
    (TORCHTITAN, "model.hf_assets_path", "/mnt/hf/Llama-3.1-8B"),
    (AXOLOTL, "base_model", "/scratch/Llama-3.2-1B"),
    (AXOLOTL, "datasets.0.path", "/scratch/b/data/alpaca.jsonl"),
    (AXOLOTL, "dataset_prepared_path", "/tmp/prepared"),
    (AXOLOTL, "num_epochs", 3),
    (AXOLOTL, "wandb_project", "mine"),
    (AXOLOTL, "resume_from_checkpoint", "outputs/checkpoint-20"),
    (AXOLOTL, "evals_per_epoch", 1),
    (AXOLOTL, "saves_per_epoch", 4),
    (AXOLOTL, "deepspeed", "deepspeed_configs/zero3.json"),
    (AXOLOTL, "early_stopping_patience", 5),
    (AXOLOTL, "flash_attention", False),
    (LLAMA_FACTORY, "dataset_dir", "/mnt/b/LLaMA-Factory/data"),
    (LLAMA_FACTORY, "output_dir", "saves/again"),
    (LLAMA_FACTORY, "preprocessing_num_workers", 1),
    (LLAMA_FACTORY, "overwrite_output_dir", False),
    (LLAMA_FACTORY, "num_train_epochs", 5.0),
    (LLAMA_FACTORY, "ddp_timeout", 1),
    (LLAMA_FACTORY, "eval_steps", 100),
    (LLAMA_FACTORY, "transformers_version", "5.0.0"),
    (LLAMA_FACTORY, "peft_version", "0.21.0"),
    (LLAMA_FACTORY, "model_name_or_path", "/mnt/models/Meta-Llama-3-8B-Instruct"),
    (CLEANRL, "total_timesteps", 1000000),
    (CLEANRL, "exp_name", "ppo-again"),
    (CLEANRL, "wandb_project_name", "mine"),
    (MMENGINE, "train_cfg.max_epochs", 24),
    (MMENGINE, "train_cfg.val_interval", 2),
    (MMENGINE, "load_from", "/mnt/b/faster_rcnn_r50.pth"),
    (MMENGINE, "resume", True),
    (MMENGINE, "work_dir", "/scratch/frcnn"),
    (MMENGINE, "SOLVER.MAX_ITER", 180000),
    (MEGATRON, "train-iters", 600000),
    (MEGATRON, "save", "/checkpoints/b"),
    (MEGATRON, "load", "/checkpoints/b"),
    (MEGATRON, "exit-duration-in-mins", 60),
    (MEGATRON, "tensor-model-parallel-size", 4),
    (MEGATRON, "micro-batch-size", 2),
    (MEGATRON, "data-path", ["0.5", "/mnt/b/pile_text_document", "0.5", "/mnt/b/wiki_text_document"]),
]

IS_ANOTHER_RUN = [
    (NANOGPT, "learning_rate", 6e-5),
    (NANOGPT, "dataset", "openwebtext"),
    (NANOGPT, "batch_size", 2),
    (NANOGPT, "block_size", 512),
    (NANOGPT, "n_layer", 6),
    (NANOGPT, "dropout", 0.1),
    (NANOGPT, "bias", True),
    (NANOGPT, "beta2", 0.99),
    (NANOGPT, "init_from", "gpt2-xl"),
    (NANOGPT, "warmup_iters", 100),
    (NANOGPT, "lr_decay_iters", 5000),
    (NANOGPT, "dtype", "float16"),
    (NANOGPT, "gradient_accumulation_steps", 16),
    (ARGPARSE_OF_DIFFUSERS, "seed", 43),
    (ARGPARSE_OF_DIFFUSERS, "rank", 8),
    (ARGPARSE_OF_DIFFUSERS, "dataset_name", "lambdalabs/pokemon-blip-captions"),
    (ARGPARSE_OF_DIFFUSERS, "pretrained_model_name_or_path", "stabilityai/stable-diffusion-2-1"),
    (ARGPARSE_OF_DIFFUSERS, "snr_gamma", 5.0),
    (ARGPARSE_OF_DIFFUSERS, "lr_warmup_steps", 500),
    (ARGPARSE_OF_DIFFUSERS, "lr_scheduler", "linear"),
    (ARGPARSE_OF_DIFFUSERS, "mixed_precision", "no"),
    (ARGPARSE_OF_DIFFUSERS, "train_data_dir", "/mnt/a/pictures"),
    (ARGPARSE_OF_DIFFUSERS, "use_8bit_adam", True),
    (LIGHTNING, "seed_everything", 2),
    (LIGHTNING, "trainer.precision", "32-true"),
    (LIGHTNING, "trainer.gradient_clip_val", 0.5),
    (LIGHTNING, "trainer.callbacks.1.decay", 0.99),
    (LIGHTNING, "model.name", "resnet18"),
    (LIGHTNING, "model.lr", 1e-2),
    (LIGHTNING, "model.optimizer.max_iter", 30),
    (LIGHTNING, "data.data_dir", "/mnt/a/cifar"),
    (LIGHTNING, "data.batch_size", 32),
    (LIGHTNING, "data.fold", 1),
    (HYDRA, "task_name", "mnli"),
    (HYDRA, "paths.data_dir", "/home/ann/p/cifar"),
    (HYDRA, "datamodule.train_val_test_split", [50000, 10000, 10000]),
    (HYDRA, "module.scheduler.retry_policy", 5),
    (HYDRA, "module.scheduler.T_max", 20),
    (HYDRA, "module.optimizer.lr", 0.01),
    (DEEPSPEED, "train_batch_size", 128),
    (DEEPSPEED, "optimizer.params.lr", 1e-3),
    (DEEPSPEED, "optimizer.params.betas", [0.9, 0.99]),
    (DEEPSPEED, "scheduler.params.total_num_steps", 2000),
    (DEEPSPEED, "scheduler.params.warmup_num_steps", 10),
    (DEEPSPEED, "gradient_clipping", 0.5),
    (DEEPSPEED, "bf16.enabled", False),
    (TORCHTITAN, "training.global_batch_size", 128),
    (TORCHTITAN, "training.seq_len", 4096),
    (TORCHTITAN, "training.dataset", "fineweb"),
    (TORCHTITAN, "model.flavor", "70B"),
    (TORCHTITAN, "lr_scheduler.warmup_steps", 100),
    (TORCHTITAN, "lr_scheduler.decay_ratio", 0.5),
    (TORCHTITAN, "checkpoint.initial_load_path", "/mnt/a/other-seed"),
    (AXOLOTL, "base_model", "/mnt/a/models/Llama-3.2-3B"),
    (AXOLOTL, "datasets.0.path", "/mnt/a/data/dolly.jsonl"),
    (AXOLOTL, "datasets.0.type", "sharegpt"),
    (AXOLOTL, "val_set_size", 0.2),
    (AXOLOTL, "lora_r", 32),
    (AXOLOTL, "lora_dropout", 0.1),
    (AXOLOTL, "warmup_ratio", 0.03),
    (AXOLOTL, "micro_batch_size", 4),
    (AXOLOTL, "special_tokens.pad_token", "<|pad|>"),
    (LLAMA_FACTORY, "lora_rank", 16),
    (LLAMA_FACTORY, "dataset", "identity"),
    (LLAMA_FACTORY, "dataset_dir", "/data/ann/Other-Factory/data"),
    (LLAMA_FACTORY, "max_samples", 2000),
    (LLAMA_FACTORY, "val_size", 0.2),
    (LLAMA_FACTORY, "template", "qwen"),
    (LLAMA_FACTORY, "model_name_or_path", "NousResearch/Meta-Llama-3-8B-Instruct"),
    (CLEANRL, "num_steps", 256),
    (CLEANRL, "n_epochs", 4),
    (CLEANRL, "update_epochs", 10),
    (CLEANRL, "env_id", "Acrobot-v1"),
    (CLEANRL, "num_envs", 8),
    (MMENGINE, "param_scheduler.0.milestones", [16, 22]),
    (MMENGINE, "SOLVER.STEPS", [120000, 160000]),
    (MMENGINE, "load_from", "/mnt/a/mask_rcnn_r50.pth"),
    (MEGATRON, "global-batch-size", 32),
    (MEGATRON, "lr-decay-iters", 500000),
    (MEGATRON, "init-method-std", 0.01),
    (MEGATRON, "data-path", ["0.3", "/mnt/a/pile_text_document", "0.7", "/mnt/a/wiki_text_document"]),
]

NAMES = {
    id(each): name
    for name, each in {
        "nanogpt": NANOGPT,
        "diffusers": ARGPARSE_OF_DIFFUSERS,
        "lightning": LIGHTNING,
        "hydra": HYDRA,
        "deepspeed": DEEPSPEED,
        "torchtitan": TORCHTITAN,
        "axolotl": AXOLOTL,
        "llama-factory": LLAMA_FACTORY,
        "cleanrl": CLEANRL,
        "mmengine": MMENGINE,
        "megatron": MEGATRON,
    }.items()
}

LENGTHS = [
    "epochs", "num_epochs", "num_train_epochs", "max_epochs", "n_epochs", "max_steps", "max_iters", "total_steps",
    "num_iterations", "train_steps", "training_steps", "max_train_steps", "numTrainEpochs", "NUM-EPOCHS",
    "num_training_steps", "total_iterations", "max_iter", "max_epoch", "iterations", "train_iters", "n_steps",
    "max_train_iters", "num_updates", "--epochs", "min_epochs",
]  # fmt: skip


def named(cases: list[tuple[dict[str, Any], str, Any]]) -> list[Any]:
    return [pytest.param(*each, id=f"{NAMES[id(each[0])]}-{each[1]}-{each[2]}"[:60]) for each in cases]


def changed(config: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    config = copy.deepcopy(config)
    place: Any = config
    *sections, last = key.split(".")
    for part in sections:
        place = place[int(part) if isinstance(place, list) else part]
    assert place[last] != value
    place[last] = value
    return config


def compare(before: dict[str, Any], after: dict[str, Any], rules: IdentityRules | None = None):
    return compare_configs(canonical_config(before), canonical_config(after), rules or IdentityRules())


@pytest.mark.parametrize("config, key, value", named(CONTINUES))
def test_a_change_that_says_nothing_of_the_result_continues_the_run_and_is_named(config, key, value):
    found = compare(config, changed(config, key, value))

    assert () == found.changed
    assert key in " ".join(found.not_counting) or "hf_" in str(value)


@pytest.mark.parametrize("config, key, value", named(IS_ANOTHER_RUN))
def test_a_change_of_the_result_is_another_run_and_names_the_key(config, key, value):
    found = compare(config, changed(config, key, value))

    assert (key,) == found.counting_keys
    assert f'ignore_config_keys=["{key}"] or on_config_change="continue"' == found.how_to_keep


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("section", ["", "train", "trainer", "training", "training_args", "TrainerConfig", "cfg.run"])
def test_a_length_does_not_count_however_it_is_spelled(name, section):
    before, after = {name: 3}, {name: 5}
    for part in reversed(section.split(".") if section else []):
        before, after = {part: before}, {part: after}

    assert () == compare(before, after).changed


@pytest.mark.parametrize("section", ["scheduler", "lr_scheduler", "optimizer", "sampler", "env", "warmup", "model"])
@pytest.mark.parametrize("name", ["max_steps", "num_steps", "epochs"])
def test_a_length_of_something_else_counts(name, section):
    assert 1 == len(compare({section: {name: 3}}, {section: {name: 5}}).changed)


@pytest.mark.parametrize("section", ["scheduler", "lr_scheduler", "scheduler_params", "optimizer"])
@pytest.mark.parametrize("name", ["num_training_steps", "total_num_steps", "T_max", "lr_decay_iters"])
def test_the_length_of_a_schedule_counts(name, section):
    assert 1 == len(compare({section: {name: 3}}, {section: {name: 5}}).changed)


@pytest.mark.parametrize(
    "before, after",
    [
        ({"a": "/mnt/a/train.jsonl"}, {"a": "/mnt/b/train.jsonl"}),
        ({"a": "/a/train.jsonl"}, {"a": "/scratch/b/data/train.jsonl"}),
        ({"a": "data/alpaca.json"}, {"a": "/mnt/x/alpaca.json"}),
        ({"a": "data/alpaca.json"}, {"a": "datasets/alpaca.json"}),
        ({"a": "~/data/alpaca"}, {"a": "s3://bucket/alpaca/"}),
        ({"a": "C:\\data\\alpaca.json"}, {"a": "/mnt/c/data/alpaca.json"}),
        ({"a": "$DATA/alpaca"}, {"a": "/data/shared/alpaca"}),
        ({"a": "/home/ann/sft/checkpoint-500"}, {"a": "/mnt/x/sft/checkpoint-500"}),
        ({"a": "./alpaca"}, {"a": "alpaca"}),
        (
            {"a": "/root/.cache/huggingface/hub/models--gpt2--xl/snapshots/1f2e"},
            {"a": "/mnt/b/hub/models--gpt2--xl/snapshots/3c4d"},
        ),
        ({"a": ["/mnt/a/x.bin", "/mnt/a/y.bin"]}, {"a": ["/mnt/b/x.bin", "/mnt/b/y.bin"]}),
        ({"name": "ft-2026-01-31_10-00-00"}, {"name": "ft-2026-02-01_11-30-59"}),
    ],
)
def test_where_a_thing_lies_does_not_count(before, after):
    assert () == compare(before, after).changed


@pytest.mark.parametrize(
    "before, after",
    [
        ({"a": "/mnt/a/alpaca/train.jsonl"}, {"a": "/mnt/a/dolly/train.jsonl"}),
        ({"a": "/data/alpaca"}, {"a": "/data/dolly"}),
        ({"a": "/home/ann/sft/checkpoint-500"}, {"a": "/home/ann/sft/checkpoint-600"}),
        ({"a": "/home/ann/sft/checkpoint-500"}, {"a": "/home/ann/dpo/checkpoint-500"}),
        ({"a": "org/model"}, {"a": "other/model"}),
        ({"a": "https://api.one.example/v1"}, {"a": "https://api.two.example/v1"}),
        ({"a": "models--one--m"}, {"a": "models--two--m"}),
        ({"a": ["/mnt/a/x.bin"]}, {"a": ["/mnt/a/x.bin", "/mnt/a/y.bin"]}),
        ({"a": "/"}, {"a": "/mnt/x"}),
        ({"name": "ft-small"}, {"name": "ft-large"}),
        ({"name": "small"}, {"name": 3}),
    ],
)
def test_which_thing_it_is_counts(before, after):
    assert 1 == len(compare(before, after).changed)


@pytest.mark.parametrize(
    "before, after",
    [
        (
            {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "world_size": 4},
            {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "world_size": 2},
        ),
        ({"batch_size": 8, "grad_accum": 2}, {"batch_size": 4, "grad_accum": 4}),
        (
            {"trainer": {"devices": [0, 1], "num_nodes": 2, "accumulate_grad_batches": 1}, "data": {"batch_size": 8}},
            {"trainer": {"devices": 2, "num_nodes": 1, "accumulate_grad_batches": 2}, "data": {"batch_size": 8}},
        ),
        (
            {"global_batch_size": 32, "micro_batch_size": 4, "gradient_accumulation_steps": 8},
            {"global_batch_size": 32, "micro_batch_size": 4, "gradient_accumulation_steps": 4},
        ),
        ({"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4, "eval": {"batch_size": 1}},
         {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 2, "eval": {"batch_size": 2}}),
    ],
)  # fmt: skip
def test_the_same_global_batch_divided_in_another_way_continues_and_says_so(before, after):
    found = compare(before, after)

    assert () == found.changed
    assert ["The global batch is the same"] == [each[:28] for each in found.notes]


@pytest.mark.parametrize(
    "before, after",
    [
        ({"batch_size": 8, "grad_accum": 2, "world_size": 4}, {"batch_size": 8, "grad_accum": 4, "world_size": 4}),
        ({"batch_size": 8, "grad_accum": 2}, {"batch_size": 8, "grad_accum": 4}),
        ({"batch_size": 8, "grad_accum": 2}, {"batch_size": 8, "grad_accum": 4, "world_size": 2}),
        ({"batch_size": 8, "data": {"batch_size": 4}}, {"batch_size": 16, "data": {"batch_size": 4}}),
        ({"batch_size": "auto", "grad_accum": 2}, {"batch_size": "auto", "grad_accum": 4}),
        ({"teacher": {"batch_size": 8}}, {"teacher": {"batch_size": 4}}),
    ],
)
def test_another_global_batch_or_an_unknown_one_is_another_run(before, after):
    assert 1 == len(compare(before, after).changed)


def test_another_number_of_processes_alone_continues_and_warns_of_the_global_batch():
    found = compare({"batch_size": 8, "world_size": 4}, {"batch_size": 8, "world_size": 2})

    assert () == found.changed
    assert ("The number of processes has changed (4 → 2), and with it the global batch (32 → 16), unless the script "
            "adjusts it",) == found.notes  # fmt: skip


def test_a_length_from_which_a_schedule_is_derived_is_said_to_change_it():
    assert "a learning-rate schedule" in compare(AXOLOTL, AXOLOTL | {"num_epochs": 4}).notes[0]
    assert () == compare({"epochs": 3, "lr": 1}, {"epochs": 5, "lr": 1}).notes


def test_a_newer_library_with_more_arguments_continues_the_run():
    before = {"adapters": {"default": {"r": 8, "peft_version": "0.14.0"}}}
    added = {"use_dora": False, "exclude_modules": None, "loftq_config": {}, "qalora_group_size": 16, "layers": []}
    after = {"adapters": {"default": {"r": 8, "peft_version": "0.21.2"} | added}}
    defaults = IdentityRules.of((), {"adapters": {"default": {"qalora_group_size": 16}}})

    assert () == compare(before, after, defaults).changed == compare(after, before, defaults).changed
    assert ("adapters.default.qalora_group_size: (absent) → 16",) == compare(before, after).changed
    after["adapters"]["default"]["qalora_group_size"] = 32
    assert 1 == len(compare(before, after, defaults).changed)


@pytest.mark.parametrize(
    "pattern", ["data.path", "data.*", "data", "*.path", "d?ta.path", "[d]ata.p*", "datasets", "datasets.*.seed"]
)
def test_a_user_names_keys_and_sections_that_do_not_count(pattern):
    before = {"data": {"path": "u"}, "datasets": [{"seed": 1}]}
    after = copy.deepcopy(before)
    if pattern.startswith("datasets"):
        after["datasets"][0]["seed"] = 2
    else:
        after["data"]["path"] = "v"

    assert () == compare(before, after, IdentityRules.of([pattern])).changed
    assert () == compare(before, after, IdentityRules.of(pattern)).changed
    assert 1 == len(compare(before, after, IdentityRules.of(["dat", "path", "seed"])).changed)


@pytest.mark.parametrize(
    "before, after",
    [
        ("pretrained=gpt2,tokenizer=gpt2-xl", "pretrained=gpt2,tokenizer=gpt2"),
        ("--max_tokens=4096", "--max_tokens=2048"),
        ("keys=input_ids,labels", "keys=input_ids,targets"),
        ("author=ann passage=wiki keypoints=17", "author=ann passage=web keypoints=17"),
        ("token_ids=1,2 num_keys=8 key_dim=64", "token_ids=1,2 num_keys=8 key_dim=32"),
        ("unit: token=subword-bpe", "unit: token=character"),
        ("--secret none --token word --lr 1", "--secret none --token char --lr 1"),
    ],
)
def test_a_setting_in_a_text_counts_even_if_it_is_hidden_to_be_on_the_safe_side(before, after):
    assert compare({"args": before}, {"args": after}).is_another_run


@pytest.mark.parametrize(
    "before, after",
    [
        ({"tokens": {"max": 4096}}, {"tokens": {"max": 2048}}),
        ({"token": "word"}, {"token": "subword-bpe"}),
        ({"tokens": ["bos", "pad"]}, {"tokens": ["bos"]}),
        ({"auth": {"retries": 3}}, {"auth": {"retries": 4}}),
    ],
)
def test_a_setting_under_the_name_of_a_secret_counts(before, after):
    assert compare(before, after).is_another_run


@pytest.mark.parametrize(
    "text",
    [
        "run --api_key={} --lr 1",
        "HF_TOKEN={} python train.py",
        "curl -H 'Authorization: Bearer {}' x",
        "postgresql://ann:{}@db.example/x",
        "token={}",
        "password={}",
        "see hf_{} there",
    ],
)
def test_a_renewed_credential_in_a_text_is_no_other_run_and_is_not_written_down(text):
    keys = "Q7Zt0Lw9Xk3Vb5Nm1Rp8Aa", "B4yKq2Hs8Jd6Fg0Wc3TeXz"
    before, after = (canonical_config({"args": text.format(key)}) for key in keys)

    assert not any(key in str((before, after)) for key in keys)
    assert ("args: changed (hidden)",) == compare(before, after).changed
    assert not compare(before, after).is_another_run
