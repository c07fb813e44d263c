from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof import RunReader, training_progress_context
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.distillation.data.source import Source
from crashproof.distillation.data.text_data import TokenizedData, tokenized
from crashproof.distillation.display import show_progress
from crashproof.distillation.evaluation.evaluator import Evaluator
from crashproof.distillation.recipes.kd import KdRecipe
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.settings.progress import ProgressConfig
from crashproof.distillation.settings.recipes.kd import KdLossConfig
from crashproof.distillation.settings.train import TrainConfig
from crashproof.distillation.training.bad_steps.guard import BadStepGuard, StepGuard
from crashproof.distillation.training.batches import StepBatches
from crashproof.distillation.training.loop import TrainingLoop, new_optimizer, new_state
from crashproof.distillation.training.saving import CheckpointSaver
from crashproof.distillation.training.strategy import choose_strategy
from crashproof.errors import BadStep, SavesFailed
from crashproof.pytorch.device import choose_device
from crashproof.pytorch.interrupts import Interrupts
from crashproof.pytorch.ranks import SingleRank

MakeLoop = Callable[..., TrainingLoop]

WAITS_FOR_THE_DEVICE = {
    *("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.is_nonzero"),
    *("aten._unique2", "aten.unique_consecutive", "aten.bincount", "aten.repeat_interleave"),
}
"""Operations that make the host wait for a CUDA device: their results decide a shape or a Python value."""


class _Waits(TorchDispatchMode):
    """Collects every operation that would wait for a device, were the tensors on one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removesuffix(f".{func._overloadname}")
        has_mask = name == "aten.index" and any(
            each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        if name in WAITS_FOR_THE_DEVICE or has_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class _RecordedUpdates:
    """In place of a run's context: keeps the updates and reads no tensor."""

    tracker = None

    def __init__(self) -> None:
        self.updates: list[dict[str, Any]] = []

    def update_metrics(self, **update: Any) -> None:
        self.updates.append(update)

    def witness(self, **_: object) -> None:
        """No proof is under way."""

    def get_remaining_seconds(self) -> None:
        return None


@pytest.fixture
def tokens(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> TokenizedData:
    texts = [f"The quick brown fox number {number} jumps over the lazy dog." for number in range(16)]
    source = Source(samples=[{"text": text, "line": 1} for text in texts], sha256="0", path=None)
    return tokenized(source, DataConfig(max_length=24), tokenizer, tmp_path / "cache")


@pytest.fixture
def make_loop(
    make_model: Callable[..., PreTrainedModel], tokens: TokenizedData, tmp_path: Path
) -> Iterator[MakeLoop]:
    opened: list[Any] = []

    def make(
        context: Any, *, evaluator: Evaluator | None = None, disk: Disk = REAL_DISK, **settings: Any
    ) -> TrainingLoop:
        progress = ProgressConfig(**settings.pop("progress", {"checkpoint_interval": 2}))
        train = TrainConfig(**({"steps": 4, "batch_size": 4, "warmup_steps": 1, "device": "cpu"} | settings))
        device, ranks = choose_device(train.device, train.precision), SingleRank()
        student, teacher = make_model(0).to(device.device), make_model(1).to(device.device)
        recipe = KdRecipe(student, teacher, KdLossConfig(), vocab_size=270).to(device.device)
        state = new_state(recipe, train, device, ranks)
        batches = StepBatches(tokens, train, ranks, first_sample=0, ahead_steps=1)
        saver = CheckpointSaver(state, context, tmp_path, ranks, settings=progress, disk=disk)
        opened.extend([batches, saver])
        guard = StepGuard()
        if train.on_bad_step is not None:
            guard = BadStepGuard(train.on_bad_step, train.max_bad_steps, state=state, ranks=ranks, context=context)
        return TrainingLoop(
            recipe=recipe,
            strategy=choose_strategy(recipe, train.strategy, ranks, device.device),
            batches=batches,
            state=state,
            saver=saver,
            evaluator=evaluator,
            train=train,
            progress=progress,
            device=device,
            context=context,
            interrupts=Interrupts(),
            guard=guard,
        )

    yield make
    for each in opened:
        each.close()


@contextmanager
def a_run(folder: Path, steps: int = 4) -> Iterator[Any]:
    with training_progress_context({}, folder, steps) as context:
        yield context


def run(loop: TrainingLoop) -> bool:
    with show_progress("kd", total_steps=4, is_shown=False) as shown:
        return loop.run(shown)


@pytest.mark.parametrize("on_bad_step", [None, "skip", "rollback"])
def test_a_step_never_waits_for_the_device(make_loop: MakeLoop, on_bad_step: str | None) -> None:
    context = _RecordedUpdates()
    loop = make_loop(context, gradient_accumulation=2, on_bad_step=on_bad_step)
    loop._step(loop.batches.take())
    step_data = loop.batches.take()

    with _Waits() as waits:
        loop._step(step_data)

    assert [] == waits.found
    numbers = [context.updates[1]["loss"], *context.updates[1]["loss_components"].values()]
    assert all(isinstance(number, Tensor) and number.dim() == 0 for number in numbers)


def test_a_wait_would_be_noticed(make_loop: MakeLoop) -> None:
    loop = make_loop(_RecordedUpdates())
    hidden = torch.zeros(3, requires_grad=True)

    with _Waits() as waits:
        loop._step(loop.batches.take())
        hidden.sum().item()
        torch.zeros(3)[hidden > 0]

    assert ["aten._local_scalar_dense", "aten.index"] == waits.found


@pytest.mark.parametrize("where", ["data", "forward"])
def test_steps_that_are_done_are_saved_before_any_error_ends_the_run(
    make_loop: MakeLoop, tmp_path: Path, where: str
) -> None:
    with a_run(tmp_path) as context:
        loop = make_loop(context, progress={"checkpoint_interval": 100})
        good, num_calls = loop.batches.take if where == "data" else loop.strategy.losses, 0

        def third_fails(*arguments: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            if num_calls == 3:
                torch.rand(5)
                raise IndexError("index out of range in self")
            return good(*arguments)

        setattr(*((loop.batches, "take") if where == "data" else (loop.strategy, "losses")), third_fails)
        with pytest.raises(IndexError):
            run(loop)
        weights = [parameter.detach().clone() for parameter in loop.recipe.parameters()]

        assert (tmp_path / "checkpoint_2.pt").is_file()
        loop.state.restore(tmp_path / "checkpoint_2.pt")
        assert 2 == loop.state.counters.step
        assert all(map(torch.equal, weights, loop.recipe.parameters()))


def test_weights_that_may_be_half_changed_are_not_saved(make_loop: MakeLoop, tmp_path: Path) -> None:
    def fails(*arguments: Any, **more: Any) -> None:
        raise RuntimeError("out of memory")

    with a_run(tmp_path) as context:
        loop = make_loop(context, progress={"checkpoint_interval": 100})
        loop.state.optimizer.step = fails  # type: ignore[method-assign]
        with pytest.raises(RuntimeError):
            run(loop)

    assert [] == list(tmp_path.glob("checkpoint_*"))


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_a_gpu_makes_no_synchronisation(make_loop: MakeLoop, tmp_path: Path) -> None:
    with a_run(tmp_path) as context:
        loop = make_loop(context, device="cuda", precision="bfloat16")
        loop._step(loop.batches.take())
        step_data = loop.batches.take()

        torch.cuda.set_sync_debug_mode("error")
        try:
            loop._step(step_data)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_step_with_nonfinite_gradients_changes_no_weight_and_is_reported(
    make_loop: MakeLoop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with a_run(tmp_path) as context:
        loop = make_loop(context)
        spoilt = loop.recipe.forward

        def spoil(batch: Any) -> Any:
            sums = spoilt(batch)
            return {name: value * math.nan for name, value in sums.items()} if loop.state.counters.step == 1 else sums

        loop.recipe.forward = spoil  # type: ignore[method-assign]
        weights: list[list[Tensor]] = []

        class Watching:
            def advance(self, step: int, **shown: Any) -> None:
                weights.append([each.detach().clone() for each in loop.recipe.parameters()])

        with caplog.at_level(logging.WARNING, logger="crashproof"):
            assert loop.run(Watching())

    same = [torch.equal(one, other) for one, other in zip(weights[0], weights[1], strict=True)]
    assert all(same)
    assert not all(torch.equal(one, other) for one, other in zip(weights[1], weights[2], strict=True))
    assert ["1 step(s) had non-finite gradients and changed no weight; the newest is before step 3."] == [
        record.getMessage() for record in caplog.records if "non-finite" in record.getMessage()
    ]
    losses = [line.loss for line in RunReader.open(tmp_path).history()]
    assert [False, True, False, False] == [math.isnan(loss) for loss in losses]


class Weights:
    """In place of a display: the weights after each step."""

    def __init__(self, loop: TrainingLoop) -> None:
        self.loop = loop
        self.found: list[list[Tensor]] = []

    def advance(self, step: int, **shown: Any) -> None:
        self.found.append([each.detach().clone() for each in self.loop.recipe.parameters()])

    def changes(self) -> list[bool]:
        """Whether each step after the first one has changed a weight."""
        return [not all(map(torch.equal, one, other)) for one, other in zip(self.found, self.found[1:], strict=False)]


def spoil(loop: TrainingLoop, step: int, factor: float) -> None:
    """Let the loss of a step be so many times what it would be."""
    forward = loop.recipe.forward

    def spoilt(batch: Any) -> Any:
        sums = forward(batch)
        is_spoilt = loop.state.counters.step == step - 1
        return {name: value * factor for name, value in sums.items()} if is_spoilt else sums

    loop.recipe.forward = spoilt  # type: ignore[method-assign]


@pytest.mark.parametrize("factor", [math.nan, 40.0], ids=["NaN", "spike"])
@pytest.mark.parametrize("has_scaler", [False, True], ids=["no scaler", "with a scaler"])
@pytest.mark.parametrize("skips_nonfinite", [True, False])
def test_a_bad_step_is_skipped_on_the_device_and_no_other(
    make_loop: MakeLoop, tmp_path: Path, factor: float, has_scaler: bool, skips_nonfinite: bool
) -> None:
    with a_run(tmp_path, 24) as context:
        loop = make_loop(context, steps=24, on_bad_step="skip", skips_nonfinite=skips_nonfinite)
        if has_scaler:
            loop.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        spoil(loop, 21, factor)
        weights = Weights(loop)

        assert loop.run(weights)

        assert [(21, "skipped_update")] == [(each.step, each.action) for each in context.tracker.session.bad_steps]
    # The first entry is of step 2.
    assert [21] == [step for step, changes in enumerate(weights.changes(), start=2) if not changes]


@pytest.mark.parametrize("checkpoint_interval", [1, 100], ids=["a save is due", "none is due"])
def test_nothing_is_saved_behind_a_bad_step(make_loop: MakeLoop, tmp_path: Path, checkpoint_interval: int) -> None:
    with pytest.raises(BadStep, match="Step 3 has a non-finite loss"), a_run(tmp_path) as context:
        loop = make_loop(context, on_bad_step="stop", progress={"checkpoint_interval": checkpoint_interval})
        spoil(loop, 3, math.nan)
        loop.run(Weights(loop))

    assert ([1, 2] if checkpoint_interval == 1 else []) == sorted(RunReader.open(tmp_path).session().checkpoints)


def test_an_error_behind_a_bad_step_saves_nothing(make_loop: MakeLoop, tmp_path: Path, caplog: Any) -> None:
    with pytest.raises(IndexError), a_run(tmp_path) as context:
        loop = make_loop(context, on_bad_step="rollback", progress={"checkpoint_interval": 100})
        spoil(loop, 2, math.nan)
        take, num_taken = loop.batches.take, 0

        def third_fails() -> Any:
            nonlocal num_taken
            num_taken += 1
            if num_taken == 3:
                raise IndexError("index out of range in self")
            return take()

        loop.batches.take = third_fails  # type: ignore[method-assign]
        with caplog.at_level(logging.WARNING, logger="crashproof"):
            loop.run(Weights(loop))

    assert "The steps before the error are not saved, as one of them is bad: step 2" in caplog.text
    assert [0] == sorted(RunReader.open(tmp_path).session().checkpoints)


@pytest.mark.parametrize("saves_behind", [True, False], ids=["in the background", "waited for"])
def test_every_save_is_acknowledged_when_the_loop_returns(
    make_loop: MakeLoop, tmp_path: Path, saves_behind: bool
) -> None:
    with a_run(tmp_path) as context:
        loop = make_loop(context, progress={"checkpoint_interval": 2, "saves_behind": saves_behind})

        assert run(loop)

        assert [2, 4] == sorted(context.tracker.session.checkpoints)
    reader = RunReader.open(tmp_path)
    recorded = reader.session().checkpoints
    assert [2, 4] == [each.metrics.step for each in recorded.values() if each.metrics is not None]
    assert [] == reader.problems()


def test_a_background_save_holds_the_state_of_its_step_not_of_later_ones(make_loop: MakeLoop, tmp_path: Path) -> None:
    with a_run(tmp_path) as context:
        loop = make_loop(context)
        at_two: list[Tensor] = []
        save = loop.saver.save

        def noted() -> None:
            save()
            if loop.state.counters.step == 2:
                at_two.extend(each.detach().clone() for each in loop.recipe.parameters())

        loop.saver.save = noted  # type: ignore[method-assign]
        run(loop)

    saved = torch.load(tmp_path / "checkpoint_2.pt", weights_only=True)
    names = [name for name, _ in loop.recipe.named_parameters()]
    assert all(
        torch.equal(saved["tensors"][f"module.{name}"], each) for name, each in zip(names, at_two, strict=True)
    )
    assert 2 == saved["counters"]["step"]


def test_a_full_disk_skips_a_checkpoint_and_training_continues(
    make_loop: MakeLoop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class FullAtFirst(Disk):
        num_asked = 0

        def free_bytes(self, path: Path) -> int:
            self.num_asked += 1
            return 100 if self.num_asked == 1 else 10**9

    with a_run(tmp_path) as context, caplog.at_level(logging.WARNING, logger="crashproof"):
        loop = make_loop(context, disk=FullAtFirst())

        assert run(loop)

        assert [4] == sorted(context.tracker.session.checkpoints)
    assert any("A checkpoint was skipped: The disk is full" in record.getMessage() for record in caplog.records)


def test_the_last_checkpoint_must_succeed(make_loop: MakeLoop, tmp_path: Path) -> None:
    class Full(Disk):
        def free_bytes(self, path: Path) -> int:
            return 100

    progress = {"checkpoint_interval": 2, "last_save_seconds": 0}
    with pytest.raises(SavesFailed, match="100 bytes are free"), a_run(tmp_path) as context:
        run(make_loop(context, disk=Full(), progress=progress))


def test_evaluations_are_recorded_at_their_steps_and_at_the_last(make_loop: MakeLoop, tmp_path: Path) -> None:
    class Counting:
        def sums(self, recipe: Any, device: Any, place: Any) -> Any:
            return {"perplexity": (6.0, 2.0), "unknown": (0.0, 0.0)}

    with a_run(tmp_path) as context:
        run(make_loop(context, evaluator=Counting(), progress={"checkpoint_interval": 2, "eval_every": 3}))
        evaluation = context.tracker.session.checkpoints[4].evaluation

    assert {"perplexity": 3.0} == evaluation


def test_the_optimizer_decays_matrices_alone_and_leaves_frozen_weights_out(
    make_model: Callable[..., PreTrainedModel],
) -> None:
    model = make_model()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)

    decayed, kept = new_optimizer(model, TrainConfig()).param_groups

    assert {2} == {each.dim() for each in decayed["params"]}
    assert {1} == {each.dim() for each in kept["params"]}
    assert id(frozen) not in {id(each) for group in (decayed, kept) for each in group["params"]}


def test_the_interval_is_chosen_from_what_a_save_costs(make_loop, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("crashproof.rules.saves.interval.FIRST_INTERVAL", 2)
    caplog.set_level("INFO", logger="crashproof")
    with a_run(tmp_path / "run") as context:
        run(make_loop(context, progress={"checkpoint_interval": "auto"}))
        steps = sorted(context.tracker.session.checkpoints)

    # After step 2 it chose at least a minute, and the last step always has one.
    assert [2, 4] == steps
    assert "The next checkpoint comes after" in caplog.text
    assert "0 failures in" in caplog.text
