"""The training loop of all recipes.

No step synchronises with a device: losses stay where they are computed until the tracker has copied them.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from crashproof.distillation.display import ProgressDisplay
from crashproof.distillation.evaluation.evaluator import Evaluator, Place, added, means
from crashproof.distillation.recipes.recipe import Recipe
from crashproof.distillation.schedule import learning_rate_at
from crashproof.distillation.settings.progress import ProgressConfig
from crashproof.distillation.settings.train import TrainConfig
from crashproof.distillation.training.agreement.running import RunningCheck
from crashproof.distillation.training.bad_steps.guard import GoBack, StepGuard
from crashproof.distillation.training.batches import StepBatches, StepData
from crashproof.distillation.training.rank_times import RankComparison
from crashproof.distillation.training.saving import CheckpointSaver
from crashproof.distillation.training.strategy import Strategy, clip_gradients
from crashproof.distillation.training.training_state import TrainingState
from crashproof.errors import CrashproofError
from crashproof.pytorch.coordination.from_main import is_raised_by_all
from crashproof.pytorch.device import ComputeDevice
from crashproof.pytorch.interrupts import Interrupts, StopRequested
from crashproof.pytorch.ranks import Ranks
from crashproof.pytorch.step_timer import NoStepTimer, StepTimer
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.saves.interval import SaveSchedule, choose_interval, failures_among
from crashproof.tracking.context import TrainingProgressContext

__all__ = ["TrainingLoop", "new_optimizer", "new_state"]

log = logging.getLogger("crashproof")

_WORTH_TELLING = 0.2
"""By how much another interval differs from the one that the log has told."""


@dataclass(slots=True, kw_only=True)
class TrainingLoop:
    """Trains a recipe from the step of its state on."""

    recipe: Recipe
    strategy: Strategy
    batches: StepBatches
    state: TrainingState
    saver: CheckpointSaver
    evaluator: Evaluator | None
    train: TrainConfig
    progress: ProgressConfig
    device: ComputeDevice
    context: TrainingProgressContext
    interrupts: Interrupts
    timer: StepTimer = field(default_factory=NoStepTimer)
    comparison: RankComparison | None = None
    """None on a single process."""
    guard: StepGuard = field(default_factory=StepGuard)
    _check: RunningCheck = field(init=False)
    _num_skipped: Tensor = field(init=False)
    """Steps with non-finite gradients, counted on the device."""
    _num_reported: int = 0
    _evaluated_step: int = -1
    _before_step: list[Tensor] = field(default_factory=list)
    """The random states before the step that is being made."""
    _schedule: SaveSchedule = field(init=False)
    _told_interval: int = 0
    _trains_since: float = 0.0
    """When the last save was over, by the steady clock."""
    _is_changing_weights: bool = False
    _is_warm: bool = False

    def __post_init__(self) -> None:
        self._check = RunningCheck(self.state.ranks, self.train, self.recipe)
        self._num_skipped = torch.zeros((), device=self.device.device)
        first_step = self.state.counters.step
        self._schedule = SaveSchedule.of(self.progress.checkpoint_interval, first_step=first_step)

    def run(self, display: ProgressDisplay) -> bool:
        """Train to the last step, or until a process is asked to stop; return whether the run is complete.

        When it returns, the newest step is in a checkpoint.

        Raises:
            SavesFailed: the last checkpoint could not be saved, or too many before it.
            TeacherError: a paid teacher did not answer; the steps before are saved.
            RankFailed: likewise, on the other processes.
            RankLost: another process died, or did not respond within the limit.
            RanksDisagree: processes took other samples than their parts, or have other weights; nothing is saved.
            BadStep: a step is bad, and the run is to stop at it; nothing is saved.
            GoBack: a step is bad, and training is to go back to a checkpoint before it.
            Exception: a step cannot be made; where all processes know that, or there is one alone, the steps before
                it are saved.
        """
        counters, total_steps = self.state.counters, self.train.steps
        self.recipe.train()
        self._save_beginning()
        self.guard.begin()
        self.state.ranks.share_stop_request(self.interrupts.is_requested)
        if counters.step < total_steps:
            self.saver.prepare()
        self._trains_since = time.monotonic()
        while counters.step < total_steps and not self.state.ranks.is_stop_agreed:
            try:
                self._before_step = _torch_random_states(self.device.device)
                step_data = self._take()
                self._step(step_data)
            except StopRequested:
                # Raised while a batch waited for its teacher, on all processes: the step has not begun.
                break
            except Exception as error:
                self._save_after(error)
                raise
            self._check.add(step_data)
            display.advance(counters.step, loss=self._newest_loss, remaining=self.context.get_remaining_seconds)
            self.saver.check()
            with self.timer.waiting():
                self.guard.judge(counters.step - 1)
                self._do_what_is_due()
                self.state.ranks.share_stop_request(self.interrupts.is_requested, self.guard.sees_bad_step)
                if self.state.ranks.is_bad_step_agreed:
                    self.guard.act()
        self.guard.settle(counters.step)
        self._check.require_same(counters)
        is_complete = counters.step >= total_steps
        if is_complete and self.progress.eval_every is not None:
            self._evaluate()
        self.saver.finish()
        self._report_skipped()
        return is_complete

    def _save_beginning(self) -> None:
        """Save what a bad step would need to go back to, if no healthy checkpoint is there yet."""
        if not self.guard.needs_checkpoint:
            return
        tracker, step = self.context.tracker, self.state.counters.step
        is_there = tracker is not None and bool(CheckpointCatalog(tracker.session).to_go_back_to(step + 1))
        if not self.state.ranks.broadcast(is_there, "looking for a checkpoint to go back to"):
            self.saver.save()

    def _save_after(self, error: Exception) -> None:
        """Save the steps that are done before an error ends the run, where every process that it takes can do so.

        The weights change at the end of a step alone; if the error came from there, they may be half changed.
        """
        is_alone = self.state.ranks.num_ranks == 1
        if self._is_changing_weights or not (is_alone or is_raised_by_all(error)):
            return
        saved_step = self.saver.saved_step
        _restore_torch_random_states(self._before_step, self.device.device)
        try:
            self.guard.settle(self.state.counters.step)
            self.saver.finish()
        except GoBack as back:
            log.warning("The steps before the error are not saved, as one of them is bad: %s", back)
            return
        except CrashproofError as failure:
            log.warning("The steps before the error could not be saved: %s", failure)
            return
        if self.saver.saved_step > saved_step:
            log.info("Saved step %s before the run ends with an error.", f"{self.state.counters.step:,}")

    def _do_what_is_due(self) -> None:
        """Evaluate, save and compare the ranks, all processes together."""
        if self._is_due(self.progress.eval_every):
            self._evaluate()
        is_save_due = self._schedule.is_due(self.state.counters.step)
        if is_save_due or self._check.is_due:
            self._check.require_same(self.state.counters)
        if is_save_due:
            self.guard.settle(self.state.counters.step)
            self._save()
            self._report_skipped()
        if self.comparison is not None:
            self.comparison.after_step(self.state.counters.step)

    def _save(self) -> None:
        """Save; where the interval is chosen by itself, rank 0 then chooses the next one for all."""
        schedule, step = self._schedule, self.state.counters.step
        started_at, num_steps = time.monotonic(), step - schedule.saved_step
        self.saver.save()
        now = time.monotonic()
        if schedule.is_auto:
            step_seconds = (started_at - self._trains_since) / max(1, num_steps)
            chosen = self._choose_interval(now - started_at, step_seconds)
            schedule.interval = self.state.ranks.broadcast(chosen, "choosing when to save")
        schedule.saved_step, self._trains_since = step, now

    def _choose_interval(self, save_seconds: float, step_seconds: float) -> int:
        tracker = self.context.tracker
        if tracker is None:
            return self._schedule.interval
        session = tracker.session
        chosen = choose_interval(
            save_seconds=save_seconds,
            step_seconds=step_seconds,
            num_failures=failures_among(session.attempts),
            trained_seconds=3600.0 * session.wall_clock_hours,
        )
        if abs(chosen.steps - self._told_interval) > _WORTH_TELLING * self._told_interval:
            self._told_interval = chosen.steps
            log.info("The next checkpoint comes after %s steps: %s.", f"{chosen.steps:,}", chosen.reason)
        return chosen.steps

    def _is_due(self, interval: int | None) -> bool:
        return interval is not None and self.state.counters.step % interval == 0

    def _take(self) -> StepData:
        """The data of the next step; before the first one, the strategy warms up."""
        if self._is_warm:
            with self.timer.waiting() if self.batches.waits_for_others else nullcontext():
                return self.batches.take()
        self._is_warm = True
        return self._warm_up() or self.batches.take()

    def _warm_up(self) -> StepData | None:
        """The first step's data, if the strategy took them for a pass before the first step; else None."""
        taken: list[StepData] = []

        def run_first_pass() -> None:
            taken.append(self.batches.take())
            self._accumulate_gradients(taken[0])

        with self.state.ranks.collective("warming up"):
            self.strategy.warm_up(run_first_pass)
        return taken[0] if taken else None

    def _step(self, step_data: StepData) -> None:
        """Take one optimizer step over all its forward passes, and report it."""
        counters, train = self.state.counters, self.train
        learning_rate = learning_rate_at(
            counters.step + 1,
            peak=train.learning_rate,
            warmup_steps=train.warmup_steps,
            schedule_steps=counters.schedule_steps,
            final_fraction=train.final_fraction,
        )
        for group in self.state.optimizer.param_groups:
            group["lr"] = learning_rate
        with self.state.ranks.collective(f"computing step {counters.step + 1}"):
            sums = self._accumulate_gradients(step_data)
            with self.timer.waiting():
                self.state.ranks.all_reduce(sums)
            self.timer.end_step()
            components = {
                name: sums[place] / self._divisor(step_data, name) for place, name in enumerate(self.recipe.weights)
            }
            loss = torch.stack([self.recipe.weights[name] * value for name, value in components.items()]).sum()
            self._is_changing_weights = True
            self._apply_gradients(self.guard.is_bad(counters.step + 1, loss))
        counters.step += 1
        counters.samples += self.batches.samples_per_step
        self._is_changing_weights = False
        counters.tokens += step_data.counts["tokens"]
        self.guard.add(counters.step, loss, step_data.data)
        self.context.update_metrics(
            step=counters.step,
            loss=loss,
            loss_components=components,
            learning_rate=learning_rate,
            samples_processed=counters.samples,
            tokens_processed=counters.tokens,
        )
        self.context.witness(
            model=self.recipe,
            optimizer=self.state.optimizer,
            scaler=self.state.scaler,
            counters=counters,
            batch=step_data.all_indices,
        )

    def _accumulate_gradients(self, step_data: StepData) -> Tensor:
        """Compute gradients of the step's weighted mean losses; return this process's sum of each component."""
        self.state.optimizer.zero_grad(set_to_none=True)
        weights = self.recipe.weights
        totals = torch.zeros(len(weights), device=self.device.device)
        for place, batch in enumerate(step_data.batches):
            is_last = place == len(step_data.batches) - 1
            with self.strategy.accumulating(is_last=is_last):
                with self.timer.forward(), self.device.autocast():
                    sums = self.strategy.losses(batch.to(self.device.device))
                parts = [weight / self._divisor(step_data, name) * sums[name] for name, weight in weights.items()]
                total = torch.stack(parts).sum() * self.strategy.gradient_scale
                with self.timer.backward():
                    self.state.scaler.scale(total).backward()  # type: ignore[no-untyped-call]  # torch leaves it so.
            totals += torch.stack([sums[name].detach() for name in weights])
        return totals

    def _divisor(self, step_data: StepData, component: str) -> int:
        return max(1, step_data.counts[self.recipe.counted_by[component]])

    def _apply_gradients(self, is_bad: Tensor | None) -> None:
        """Take the optimizer's step; one whose loss is bad changes no weight, if that is to be so."""
        optimizer, scaler = self.state.optimizer, self.state.scaler
        scaler.unscale_(optimizer)
        parameters = [each for each in self.recipe.parameters() if each.requires_grad]
        norm = clip_gradients(parameters, self.train.clip_norm)
        if is_bad is None and scaler.is_enabled():
            scaler.step(optimizer)
        else:
            # The norm is that of all processes, so all of them skip. The optimizer reads it on the device.
            is_skipped = (~norm.isfinite()).to(torch.float32)
            if not (self.train.skips_nonfinite or scaler.is_enabled()):
                is_skipped = torch.zeros_like(is_skipped)
            self._num_skipped += is_skipped
            if is_bad is not None:
                is_skipped = torch.maximum(is_skipped, is_bad)
            # It reads both; gradients are unscaled already.
            optimizer.grad_scale, optimizer.found_inf = None, is_skipped  # type: ignore[attr-defined]
            optimizer.step()
        scaler.update()

    def _newest_loss(self) -> float | None:
        """The newest loss that has arrived on the host."""
        tracker = self.context.tracker
        history = tracker.session.metrics_history if tracker is not None else []
        return history[-1].loss if history else None

    def _report_skipped(self) -> None:
        """Warn of steps that changed no weight; this synchronises, so it is called where the loop waits anyway."""
        num_skipped = int(self._num_skipped.item())
        if num_skipped > self._num_reported and self.state.ranks.is_main:
            log.warning(
                "%d step(s) had non-finite gradients and changed no weight; the newest is before step %s.",
                num_skipped - self._num_reported,
                f"{self.state.counters.step + 1:,}",
            )
        self._num_reported = num_skipped

    def _evaluate(self) -> None:
        step = self.state.counters.step
        if self.evaluator is None or step == self._evaluated_step:
            return
        self._evaluated_step = step
        started_at = time.monotonic()
        with self.context.phase("evaluating"), self.state.ranks.collective("evaluating"), self.device.autocast():
            place = Place(
                rank=self.state.ranks.rank,
                num_ranks=self.state.ranks.num_ranks,
                in_lockstep=self.strategy.works_in_lockstep,
            )
            own = self.evaluator.sums(self.recipe, self.device, place)
        results = means(added(self.state.ranks.all_gather(own, "evaluating")))
        self.context.record_evaluation(step, results, seconds=time.monotonic() - started_at)
        if self.state.ranks.is_main:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in results.items())
            log.info("Step %s, held-out data: %s.", f"{step:,}", shown)


def new_state(recipe: Recipe, train: TrainConfig, device: ComputeDevice, ranks: Ranks) -> TrainingState:
    """The state of a recipe, on its device, before the first step."""
    state = TrainingState(
        module=recipe,
        optimizer=new_optimizer(recipe, train),
        scaler=device.grad_scaler(),
        ranks=ranks,
        seed=train.seed,
    )
    state.counters.schedule_steps = train.schedule_steps or train.steps
    return state


def new_optimizer(module: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over all trained parameters; vectors (norms) do not decay. Fused: it can skip a step on the device."""
    parameters = [each for each in module.parameters() if each.requires_grad]
    groups = [
        {"params": [each for each in parameters if each.dim() >= 2], "weight_decay": train.weight_decay},
        {"params": [each for each in parameters if each.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=(0.9, 0.95), fused=True)


def _torch_random_states(device: torch.device) -> list[Tensor]:
    """What a forward pass draws from; the states live on the host."""
    of_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *of_device]


def _restore_torch_random_states(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)
