from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crashproof.pytorch.own_time import HostMarks, OwnTime
from crashproof.pytorch.step_timer import NoStepTimer, ReplicatedTimer, ShardedTimer
from crashproof.testing import FakeClock


class Takes(torch.autograd.Function):
    """Lets time pass in the forward pass and in the backward pass."""

    @staticmethod
    def forward(ctx, values: Tensor, clock: FakeClock, forward: float, backward: float) -> Tensor:
        ctx.clock, ctx.backward_seconds = clock, backward
        clock.advance(forward)
        return values.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.clock.advance(ctx.backward_seconds)
        return gradient, None, None, None


class Layer(nn.Module):
    def __init__(self, clock: FakeClock, *, forward: float, backward: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self._clock = clock
        self._seconds = (forward, backward)

    def forward(self, values: Tensor) -> Tensor:
        return Takes.apply(values * self.weight, self._clock, *self._seconds)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def model(clock: FakeClock) -> nn.Sequential:
    return nn.Sequential(*(Layer(clock, forward=1.0, backward=10.0) for _ in range(2)))


def take_step(timer, model: nn.Module, clock: FakeClock) -> None:
    with timer.forward():
        if isinstance(timer, ReplicatedTimer):
            # As DDP does before it calls the model.
            clock.advance(1000.0)
        total = model(torch.ones(2)).sum()
    with timer.backward():
        total.backward()
        # As DDP does once all gradients are there.
        clock.advance(1000.0)
    with timer.waiting():
        clock.advance(1000.0)
    clock.advance(0.25)
    timer.end_step()


def test_with_a_whole_model_work_ends_with_the_last_gradient(clock, model):
    timer = ReplicatedTimer(model, OwnTime(HostMarks(clock)))
    take_step(timer, model, clock)
    timer.take()
    take_step(timer, model, clock)
    take_step(timer, model, clock)

    # Both passes of both layers, and what comes after the wait.
    assert [22.25, 22.25] == timer.take()


def test_one_hook_is_left_after_the_first_pass(clock, model):
    timer = ReplicatedTimer(model, OwnTime(HostMarks(clock)))
    take_step(timer, model, clock)

    hooks = [len(each._post_accumulate_grad_hooks or ()) for each in model.parameters()]
    assert [1, 0] == hooks


def sharded(model: nn.Sequential, clock: FakeClock) -> list[nn.Module]:
    """Its layers, and what is around them, each of which waits for its weights."""
    shards = [*model, model]
    for shard in shards:
        shard.register_forward_pre_hook(lambda *_: clock.advance(500.0))
    return shards


def test_with_shards_the_forward_pass_counts_without_its_waits_and_what_is_outside(clock, model):
    timer = ShardedTimer(sharded(model, clock), OwnTime(HostMarks(clock)))
    take_step(timer, model, clock)
    take_step(timer, model, clock)

    assert [2.25, 2.25] == timer.take()


def test_layers_that_the_backward_pass_computes_again_do_not_count(clock, model):
    timer = ShardedTimer(sharded(model, clock), OwnTime(HostMarks(clock)))
    with timer.forward():
        total = torch.utils.checkpoint.checkpoint(model, torch.ones(2), use_reentrant=False).sum()
    with timer.backward():
        total.backward()
    timer.end_step()

    assert [2.0] == timer.take()


def test_where_the_waits_are_unknown_no_forward_pass_counts(clock, model):
    sharded(model, clock)
    timer = ShardedTimer([], OwnTime(HostMarks(clock)))
    take_step(timer, model, clock)

    assert [0.25] == timer.take()


def test_a_process_that_is_alone_times_nothing(clock, model):
    timer = NoStepTimer()
    take_step(timer, model, clock)

    assert [] == timer.take()


def test_gradients_are_the_same_with_and_without_timers(clock, model):
    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(torch.tensor([1.5, -2.0])).square().sum().backward()
        return [each.grad.clone() for each in model.parameters()]

    before = gradients()
    ReplicatedTimer(model, OwnTime(HostMarks(clock)))
    ShardedTimer(list(model), OwnTime(HostMarks(clock)))

    assert all(map(torch.equal, before, gradients()))
