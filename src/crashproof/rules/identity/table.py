"""The keys that do not count, each with its reason.

A key counts unless a row says otherwise. Patterns are compared with the whole of a key's last part, or of a
section, in lower case with underscores: `numTrainEpochs` and `--num-train-epochs` are both `num_train_epochs`. They
are regular expressions, in which `*` stands for anything.
"""

from __future__ import annotations

from crashproof.rules.identity.rows import KeyRow, Reason, SectionRow

__all__ = [
    "COUNT_IN_ANY_SECTION",
    "KEYS",
    "PLACES_OF_INPUTS",
    "PLACES_OF_OUTPUTS",
    "PLACES_OF_OUTPUTS_ALWAYS",
    "PLACE_NOUNS",
    "SECTIONS",
    "USUAL_WORDS",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


USUAL_WORDS = _words("""
    accelerate arg args argument arguments base cfg cli common conf config configs configuration default defaults
    dpo engine exp experiment fabric fine finetune finetuning fit flags general global grpo hf hparam hparams
    huggingface hyper hyperparameters hyperparams job learn learning lightning loop main namespace optimization
    option options orpo param parameters params phase phases pl pretrain pretraining rlhf run runner runs setting
    settings sft stage stages system tokens train trainer trainers training transformers tune tuning user
""")
"""The words that the names of usual sections consist of: `train`, `training_args`, `trainer_config`, `hparams`."""

_SCHEDULES = "*sched* *warmup* *decay* *anneal* *policy* lr lr_* *optim* optimizer*"
_IN_RL = "total_timesteps total_env_steps num_env_steps total_frames"
_PREFIX = "(max|min|num|n|nb|no|total|target|number_of|max_num|total_num)_"
_UNIT = "(step|iter|iteration|epoch)"
_UNITS = "(steps|iters|iterations|epochs|updates)"
_TRACKERS = "(wandb|mlflow|tensorboard|tb|comet|comet_ml|neptune|clearml|aim|swanlab|trackio|dvclive)"
_EVALUATION = "(eval|evaluation|val|valid|validation|test)"
_RUN = "(run|wandb_run|experiment|exp|expt|job|project|trial|sweep|study)"

KEYS: tuple[KeyRow, ...] = (
    KeyRow(
        reason=Reason.LENGTH,
        keys=f"""
            ({_PREFIX})?((train|training)_)?{_UNITS} {_PREFIX}{_UNIT} epoch epoch_num max_update
            {_PREFIX}(optimizer|optim|global|gradient|update|finetune)_{_UNITS}
            duration max_duration max_time max_hours max_minutes max_seconds time_limit (max_)?wall_?time
            early_stop*
        """,
        is_usual=True,
        # There, `num_steps` is the length of a rollout, and `n_epochs` passes over one.
        not_beside=_IN_RL,
    ),
    KeyRow(
        reason=Reason.LENGTH,
        keys=f"""
            ({_PREFIX})?(train|training)_{_UNITS} {_PREFIX}(train|training)_tokens (train|training)_(samples|tokens)
            ((max|total)_)?(train|training)_(time|hours|minutes) {_IN_RL} exit_duration_in_mins exit_interval
        """,
        # `get_scheduler(num_training_steps=…)` is the length of a schedule.
        not_under=_SCHEDULES,
    ),
    # Detectron2, whose `SOLVER.STEPS` are milestones of the schedule.
    KeyRow(reason=Reason.LENGTH, keys="max_iter max_iters max_epochs num_epochs epochs", under="solver"),
    KeyRow(
        reason=Reason.NAME,
        keys=f"""
            {_RUN}_(name|id|group|tags?|notes?|description|desc|title|label|suffix|prefix|uuid|hash|version|url)
            {_RUN}_(date|time|timestamp)
        """,
    ),
    KeyRow(
        reason=Reason.NAME,
        keys="exp experiment project entity tags? notes? comments? description desc title",
        is_usual=True,
    ),
    KeyRow(
        reason=Reason.NAME, keys="name id group", under="run experiment exp job project trial study meta metadata"
    ),
    KeyRow(
        reason=Reason.LOGGING,
        keys=f"""
            {_TRACKERS}(_*)? (use|with|enable|no|disable|log|log_to)_{_TRACKERS} report_to
            log loggers? logging logging_* loglevel log_(level|interval|every|freq|frequency|steps?|iters|period)(_*)?
            log_(with|to|on|only|rank|replica|format|config|params|metrics|samples|images|predictions)(_*)?
            log_(completions|grad|gradients|memory|model)(_*)?
            verbose verbosity quiet silent (disable|use|no|enable)_(tqdm|progress) tqdm(_*)? *progress_?bar*
            (print|display|report)_(every*|freq*|interval*|steps|iters|rate) steps_per_print
            include_num_input_tokens_seen include_tokens_per_second include_for_metrics skip_memory_metrics
            wall_clock_breakdown profile profile_* profiler profiler_* plot plot_* visuali[sz]e* detect_anomaly
            (push_to_hub|hub)(_*)? notify* notifications? email slack_*
        """,
    ),
    KeyRow(
        reason=Reason.SAVING,
        keys="""
            save save_* saves_per_epoch always_save_checkpoint async_save* *_save_(interval|every|steps|freq)
            (ckpt|checkpoints?|checkpointing|snapshot)_(interval|every|freq|frequency|steps|period|iters|epochs)(_*)?
            (ckpt|checkpoints?|checkpointing|snapshot)_(keep|limit|total|format|async|save|max|num)(_*)?
            enable_checkpoint(s|ing)? keep_(last|latest|best|checkpoints?|ckpts?|every|n|all|top)(_*)?
            max_(checkpoints|ckpts|to_keep) load_best_model_at_end metric_for_best_model greater_is_better
        """,
    ),
    # A schedule that waits for a plateau follows what it monitors.
    KeyRow(reason=Reason.SAVING, keys="monitor monitor_(metric|mode)", not_under=_SCHEDULES),
    KeyRow(
        reason=Reason.EVALUATION,
        keys=f"""
            {_EVALUATION}_(every|each|interval|freq|frequency|period|iters?|steps?|epochs?|batches|batch_size|bs)(_*)?
            {_EVALUATION}_(strategy|on|delay|accumulation|before|check|start|at|only|first|do|use|loop|mode)(_*)?
            {_EVALUATION}_(prompts?|metrics?|table|images|num|n|max|episodes|packing)(_*)?
            *(eval|validation|val|test)_batch_size batch_size_(eval|val|valid|test) (evals|validations)_per_epoch
            num_(eval|val|validation|test)_(batches|steps|images|samples) num_sanity_val_steps
            check_val_every_n_epoch limit_(val|test|predict)_batches prediction_loss_only batch_eval_metrics
            (do|run|skip|no|disable|enable)_(train|eval|evaluation|predict|test|validation|val) evaluate
            evaluate_during_training (bf16|fp16)_full_eval
        """,
    ),
    KeyRow(
        reason=Reason.RESUME,
        keys="""
            resume resume_* *_resume resumed? auto_?resume* continue continue_(training|from|run) ckpt_path
            restore restore_* recover recover_from overwrite overwrite_output overwrite_output_dir ignore_data_skip
            no_load_(optim|rng) load_(optimizer|scheduler|rng|trainer)_states?
            reset_(optimizer|lr_scheduler|meters|dataloader)
        """,
    ),
    KeyRow(
        reason=Reason.RESUME,
        keys=f"(start|initial|init|begin|first|last|current|cur|global)_{_UNIT} epoch_start iter_num",
        is_usual=True,
    ),
    # nanoGPT: `scratch` or `gpt2`, and then `resume`. Other weights to start from make another run.
    KeyRow(reason=Reason.RESUME, keys="init_from", values="resume"),
    # Megatron: the folder to resume from.
    KeyRow(reason=Reason.RESUME, keys="load", is_usual=True, beside="train_iters train_samples"),
    KeyRow(
        reason=Reason.PROCESSES,
        keys="""
            *num_workers n_workers workers (dataloader|loader|data|dataset|preprocessing)_workers num_proc *_num_proc
            *num_threads n_threads nthreads n_jobs num_cpus cpus cpus_per_task *pin_memory* *persistent_workers
            prefetch *prefetch_(factor|batches|size|count) dataloader_(prefetch|multiprocessing|in_order)*
            local_rank global_rank node_rank machine_rank (local_)?process_index (local_)?world_size
            nproc (nproc|n?gpus|num_gpus|n_gpus)_per_node num_processes num_machines num_nodes n_nodes nnodes
            num_gpus n_gpus? ngpus? gpus? gpu_(ids?|index|indices)
            num_devices devices? device_(ids?|count|map|index|type)
            (cuda_)?visible_devices cuda (no|use)_(cuda|cpu|gpu|mps|mps_device|tpu|xpu|npu) accelerator
            master_(addr|address|port) main_process_(ip|port) dist_(url|backend) (rdzv|rendezvous)_* nccl_*
            (use_)?(ddp|fsdp|deepspeed|distributed)(_*)? multiprocessing_distributed zero_stage sharding_strategy
            (tensor|pipeline|context|data|sequence|expert|model)_(model_)?parallel* parallelism_config
            (tp|pp|cp|dp|sp|ep)_(size|degree) *_parallel_(size|degree) *_(shard|replicate)_degree
            auto_find_batch_size
        """,
    ),
    KeyRow(reason=Reason.PROCESSES, keys="host port", is_usual=True),
    KeyRow(reason=Reason.PROCESSES, keys="rank", is_usual=True, beside="world_size"),
    KeyRow(
        reason=Reason.PROCESSES,
        keys="backend strategy distributed_type",
        values="nccl gloo mpi ucc xla hccl (ddp|fsdp|deepspeed|dp|single_device)(_*)? multi_(gpu|cpu|npu)",
    ),
    # Elsewhere it initializes weights.
    KeyRow(reason=Reason.PROCESSES, keys="init_method", values="(env|tcp|file)://*"),
    KeyRow(
        reason=Reason.EXECUTION,
        keys="""
            compile compile_* torch_compile* use_compile use_torch_compile *(gradient|activation|grad)_checkpoint*
            *recompute* offload* *_offload cpu_offload* low_cpu_mem_usage torch_empty_cache_steps
            use_cache overwrite_cache load_from_cache_file cudnn_benchmark full_determinism trust_remote_code
            flash_attn* flash_attention* use_flash* *attn_implementation *xformers* sdp_attention* *liger_kernel*
        """,
    ),
    KeyRow(reason=Reason.EXECUTION, keys="benchmark deterministic", is_usual=True),
    KeyRow(
        reason=Reason.ORIGIN,
        keys="*_versions?",
        but="""
            *(annotations?|arch|architecture|checkpoint|corpus|data|datasets?|env|labels?|loss|model)_versions?
            *(prompts?|recipe|reward|schema|split|task|template|tokenizer|vocab|weights)_versions?
        """,
    ),
    KeyRow(
        reason=Reason.ORIGIN,
        keys="""
            git_* commit commit_(hash|sha|id) code_hash *timestamp hostname node_name machine_name pid ppid uuid
            (start|started|created|updated|modified|launch|launched)_?(at|time|date|on)
            slurm_* pbs_* lsf_* jobid array_task_id auto_mapping runtime_config
        """,
    ),
    KeyRow(
        reason=Reason.ORIGIN, keys="versions? time date datetime now user username cwd machine node", is_usual=True
    ),
)

SECTIONS: tuple[SectionRow, ...] = (
    SectionRow(reason=Reason.LOGGING, sections="progress log", is_top=True),
    SectionRow(
        reason=Reason.LOGGING,
        sections=f"""
            {_TRACKERS}(_*)? logging loggers? logger_* hydra profiler profiling flops_profiler comms_logger
            *progress_bar lr_monitor learning_rate_monitor
        """,
    ),
    SectionRow(
        reason=Reason.SAVING,
        sections="checkpoint checkpoints checkpointing checkpointer model_checkpoint ckpt saving",
    ),
    SectionRow(reason=Reason.LENGTH, sections="early_stop*"),
    SectionRow(reason=Reason.EVALUATION, sections="eval evaluation evaluator validation", is_usual=True),
    SectionRow(reason=Reason.RESUME, sections="resume resume_*"),
    SectionRow(
        reason=Reason.PROCESSES,
        sections="""
            zero_optimization parallelism fsdp fsdp_config fsdp_plugin ddp distributed aio comm launcher
            accelerate_config resources slurm cluster autotuning fault_tolerance
        """,
    ),
    SectionRow(
        reason=Reason.EXECUTION,
        sections="""
            activation_checkpoint activation_checkpointing compile compilation torch_compile liger_kernel_config
            auto_mapping runtime_config
        """,
    ),
)

COUNT_IN_ANY_SECTION = """
    size *(set|train|eval|val|valid|validation|test|dev)_size split *_split *fraction *_ratio
    *percent* *held_?out* *hold_?out* initial_load* init_* initial_checkpoint* *pretrained*
"""
"""What is taken out of the training data, and what the training starts from, wherever it stands."""

PLACE_NOUNS = _words("""
    cache dir dirpath dirs directories directory file filename folder folders home location path paths root uri
""")
"""The last words of a key that says where something lies."""
PLACES_OF_OUTPUTS = _words("""
    artifact artifacts backup cache checkpoint checkpoints ckpt ckpts default download dump dumps exp experiment
    experiments export hf home hub job local log logging logs offload out output outputs prediction predictions
    prepared profile project result results root run runs save saved saving scratch storage temp temporary
    tensorboard tmp torch trace wandb weights work working
""")
"""Words of a key that says where to write. It never counts; of any other place, the name of what lies there does."""
PLACES_OF_OUTPUTS_ALWAYS = _words("cache dump log logging logs out output outputs prepared save saved tmp temp")
"""Words that decide even beside one that says what is read: `dataset_cache_dir`, `model_save_path`."""
PLACES_OF_INPUTS = _words("""
    adapter corpus data dataset datasets finetune from image images init initial input inputs load lora manifest
    model name pretrained prompt prompts ref reference reward source src student teacher text tokenizer train val
    vocab
""")
"""Words of a key whose place is read, whatever else it says: `pretrained_checkpoint_path`."""
