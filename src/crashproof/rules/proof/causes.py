"""What is usually wrong with a resume, in words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["SENTENCES", "Cause", "Sentence"]


class Cause(StrEnum):
    """What is wrong with a resume, or with a command."""

    AVERAGE_FORGOTTEN = "average_forgotten"
    CONFIG_CHANGES = "config_changes"
    COUNTS_NOT_RESTORED = "counts_not_restored"
    DATA_BEGIN_AGAIN = "data_begin_again"
    DATA_ELSEWHERE = "data_elsewhere"
    DOES_NOT_START_AGAIN = "does_not_start_again"
    EPOCH_ORDER = "epoch_order"
    EXTRA_DRAWS = "extra_draws"
    HORIZON = "horizon"
    LENGTH = "length"
    LOSS_ALONE = "loss_alone"
    MID_ACCUMULATION = "mid_accumulation"
    OPTIMIZER_NOT_RESTORED = "optimizer_not_restored"
    OTHER_STATE = "other_state"
    OTHER_WEIGHTS = "other_weights"
    RANDOM_NOT_RESTORED = "random_not_restored"
    SAMPLES_REPEATED = "samples_repeated"
    SAMPLES_SKIPPED = "samples_skipped"
    SCALER_NOT_RESTORED = "scaler_not_restored"
    SCHEDULE_BEGINS_AGAIN = "schedule_begins_again"
    SCHEDULE_STEPPED_TWICE = "schedule_stepped_twice"
    SECOND_RESUME = "second_resume"
    SHUFFLE_NOT_SEEDED = "shuffle_not_seeded"
    STARTS_FROM_ZERO = "starts_from_zero"
    STEPS_MISSING = "steps_missing"
    UPDATE_DIFFERS = "update_differs"
    UNSEEDED = "unseeded"
    NOT_REPEATABLE = "not_repeatable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """A cause for people."""

    says: str
    """What happens."""
    do: str
    """What to do about it."""


SENTENCES: dict[Cause, Sentence] = {
    Cause.AVERAGE_FORGOTTEN: Sentence(
        says="the average of the weights (EMA) is not restored: after a resume it begins again",
        do="Save the average in the checkpoint, and load it on resume.",
    ),
    Cause.CONFIG_CHANGES: Sentence(
        says="the config is another at every start, so each start archives the run and begins a new one",
        do="Keep times and random numbers out of the config, or name their keys in ignore_config_keys.",
    ),
    Cause.COUNTS_NOT_RESTORED: Sentence(
        says="the counts of samples or tokens are not restored",
        do="Save the counts in the checkpoint, and go on counting from them.",
    ),
    Cause.DATA_BEGIN_AGAIN: Sentence(
        says="the data loader begins its epoch again after a resume: samples are seen twice",
        do="Skip what was consumed of the epoch, as crashproof.pytorch.sampler does without reading it.",
    ),
    Cause.DATA_ELSEWHERE: Sentence(
        says="after a resume, the data go on at another place than where they were left",
        do="Save the number of samples consumed, and begin there.",
    ),
    Cause.DOES_NOT_START_AGAIN: Sentence(
        says="the command fails when it is started again after the kill",
        do="Read the end of its output in the report; write checkpoints under a temporary name, and rename them.",
    ),
    Cause.EPOCH_ORDER: Sentence(
        says="the order of the epoch is not restored: the epoch has the order of another one",
        do="Derive the order from the seed and the number of the epoch, or save the sampler's generator.",
    ),
    Cause.EXTRA_DRAWS: Sentence(
        says="resuming draws random numbers that the uninterrupted run does not draw",
        do="Restore the random states last, behind everything that is built or warmed up.",
    ),
    Cause.HORIZON: Sentence(
        says="the horizon of the learning rate is computed anew on resume, as from the steps that are left",
        do="Save the schedule's total number of steps in the checkpoint, and use that one.",
    ),
    Cause.LENGTH: Sentence(
        says="the resumed run ends at another step than the uninterrupted one",
        do="Count the steps to train from the beginning of the run, not from the resume.",
    ),
    Cause.LOSS_ALONE: Sentence(
        says="the loss differs, and nothing that was shown tells why",
        do="Show more with progress.witness(model=…, optimizer=…, batch=…), and prove again.",
    ),
    Cause.MID_ACCUMULATION: Sentence(
        says="the checkpoint was saved in the middle of an accumulation, without the gradients accumulated so far",
        do="Save between two optimizer steps only, or save the gradients too.",
    ),
    Cause.OPTIMIZER_NOT_RESTORED: Sentence(
        says="the optimizer's state is not restored",
        do="Save optimizer.state_dict() in the checkpoint, and load it on resume.",
    ),
    Cause.OTHER_STATE: Sentence(
        says="a part of the state is not restored",
        do="Save it in the checkpoint, and load it on resume.",
    ),
    Cause.OTHER_WEIGHTS: Sentence(
        says="the weights are not those of the last checkpoint: another one (the best?) or only a part was loaded",
        do="Load the newest checkpoint, not the best one, and all of its weights and buffers.",
    ),
    Cause.RANDOM_NOT_RESTORED: Sentence(
        says="the state of a random generator, which dropout and augmentation draw from, is not restored",
        do="Save the states of all generators in the checkpoint, and restore them last.",
    ),
    Cause.SAMPLES_REPEATED: Sentence(
        says="the data go on one step too early: the last batch before the checkpoint is seen twice",
        do="Skip as many batches as the checkpoint has steps; its own step is done.",
    ),
    Cause.SAMPLES_SKIPPED: Sentence(
        says="the data go on one step too late: a batch is left out",
        do="Skip as many batches as the checkpoint has steps, not one more.",
    ),
    Cause.SCALER_NOT_RESTORED: Sentence(
        says="the gradient scaler is not restored: its scale begins again",
        do="Save scaler.state_dict() in the checkpoint, and load it on resume.",
    ),
    Cause.SCHEDULE_BEGINS_AGAIN: Sentence(
        says="the learning rate schedule is not restored: it begins again",
        do="Save scheduler.state_dict() in the checkpoint, and load it on resume.",
    ),
    Cause.SCHEDULE_STEPPED_TWICE: Sentence(
        says="the scheduler is stepped once more on resume: the learning rate is ahead of its step",
        do="Do not call scheduler.step() on resume: its loaded state has that step.",
    ),
    Cause.SECOND_RESUME: Sentence(
        says="the first resume is exact and a later one is not: what a resumed run saves lacks what came before",
        do="Save totals since the beginning of the run, not since the start of the process.",
    ),
    Cause.SHUFFLE_NOT_SEEDED: Sentence(
        says="the data have an order that no other start has: the shuffle is not seeded, or seeded by the time",
        do="Give the shuffle a generator of its own with a fixed seed.",
    ),
    Cause.STARTS_FROM_ZERO: Sentence(
        says="the command starts from its first step after a kill, though there is a checkpoint",
        do="Ask get_recovery_checkpoint(output_dir) at the start, and load what it names.",
    ),
    Cause.STEPS_MISSING: Sentence(
        says="steps are left out after a resume",
        do="Begin with the step behind the checkpoint's.",
    ),
    Cause.UPDATE_DIFFERS: Sentence(
        says="the first update after a resume differs, though its loss is the same: most often, the state of the "
        "optimizer is not restored",
        do="Show it with progress.witness(model=…, optimizer=…) for a closer answer.",
    ),
    Cause.UNSEEDED: Sentence(
        says="a random generator is not seeded, or seeded by the time",
        do="Seed Python's random, NumPy and torch with a fixed number at the start.",
    ),
    Cause.NOT_REPEATABLE: Sentence(
        says="two uninterrupted runs of the command differ",
        do="Seed everything, call torch.use_deterministic_algorithms(True), and prove again.",
    ),
}
"""What is said of each cause."""
