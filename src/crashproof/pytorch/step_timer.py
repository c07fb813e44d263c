"""Where a training step works, and where it waits for other processes.

Under DDP, buffers are exchanged before the forward pass, and gradients while the backward pass computes; what is
left of that is waited for at its end, so a process's own work ends with its last gradient. Under FSDP every layer
waits for its weights, in both passes: own work is then the forward pass without these waits, and all that is outside
the two passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crashproof.pytorch.own_time import OwnTime

__all__ = ["NoStepTimer", "ReplicatedTimer", "ShardedTimer", "StepTimer"]


class StepTimer(Protocol):
    """Times the own work of a process on each step."""

    def forward(self) -> AbstractContextManager[object]:
        """A context for a forward pass."""
        ...

    def backward(self) -> AbstractContextManager[object]:
        """A context for a backward pass."""
        ...

    def waiting(self) -> AbstractContextManager[object]:
        """A context for anything else that may wait for other processes."""
        ...

    def end_step(self) -> None:
        """Begin the next step."""
        ...

    def take(self) -> list[float]:
        """The seconds of each step since the last call, as far as they are known."""
        ...


class NoStepTimer:
    """For a process that is alone: it waits for nobody."""

    def forward(self) -> AbstractContextManager[object]:
        """A null context."""
        return nullcontext()

    def backward(self) -> AbstractContextManager[object]:
        """A null context."""
        return nullcontext()

    def waiting(self) -> AbstractContextManager[object]:
        """A null context."""
        return nullcontext()

    def end_step(self) -> None:
        """Nothing to do."""

    def take(self) -> list[float]:
        """Nothing was timed."""
        return []


class _Timer:
    """What the two timers share."""

    def __init__(self, own_time: OwnTime[Any]) -> None:
        self._own_time = own_time

    def waiting(self) -> AbstractContextManager[object]:
        """See `StepTimer.waiting`."""
        return self._own_time.waiting()

    def end_step(self) -> None:
        """See `StepTimer.end_step`."""
        self._own_time.end_step()

    def take(self) -> list[float]:
        """See `StepTimer.take`."""
        return self._own_time.take()


class ReplicatedTimer(_Timer):
    """For a process that holds the whole model, and waits before a forward pass and after a backward pass."""

    def __init__(self, module: nn.Module, own_time: OwnTime[Any]) -> None:
        """`module` is what DDP wraps: it is called once the buffers are exchanged."""
        super().__init__(own_time)
        self._is_forward = False
        module.register_forward_pre_hook(self._after_wait)
        parameters = [each for each in module.parameters() if each.requires_grad]
        self._newest: Tensor | None = None
        # Which gradient comes last is known after the first pass; one hook is left then.
        self._hooks = [_call_on_gradient(each, self._note) for each in parameters]

    @contextmanager
    def forward(self) -> Iterator[None]:
        """See `StepTimer.forward`."""
        self._own_time.pause()
        self._is_forward = True
        yield
        self._is_forward = False

    @contextmanager
    def backward(self) -> Iterator[None]:
        """See `StepTimer.backward`."""
        yield
        if self._newest is not None:
            for hook in self._hooks:
                hook.remove()
            self._hooks = [_call_on_gradient(self._newest, lambda _: self._own_time.pause())]
            self._newest = None
        self._own_time.resume()

    def _after_wait(self, *_: object) -> None:
        if self._is_forward:
            self._own_time.resume()

    def _note(self, parameter: Tensor) -> None:
        self._newest = parameter


def _call_on_gradient(parameter: Tensor, act: Callable[[Tensor], None]) -> RemovableHandle:
    """Have something done as soon as the gradient of a parameter is there."""
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(act)  # type: ignore[no-untyped-call]
    return handle


class ShardedTimer(_Timer):
    """For a process that holds a part of each layer, and waits for the others' parts before it computes one."""

    def __init__(self, shards: Sequence[nn.Module], own_time: OwnTime[Any]) -> None:
        """`shards` are the modules whose weights are gathered before their forward pass; without them no forward pass
        counts.
        """
        super().__init__(own_time)
        self._has_hooks = bool(shards)
        self._is_forward = False
        for shard in shards:
            # They were sharded before: one hook comes before the wait, and the other after it.
            shard.register_forward_pre_hook(self._before_wait, prepend=True)
            shard.register_forward_pre_hook(self._after_wait)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """See `StepTimer.forward`."""
        if not self._has_hooks:
            self._own_time.pause()
        self._is_forward = True
        yield
        # A backward pass may compute layers again.
        self._is_forward = False

    @contextmanager
    def backward(self) -> Iterator[None]:
        """See `StepTimer.backward`."""
        self._own_time.pause()
        yield
        self._own_time.resume()

    def _before_wait(self, *_: object) -> None:
        if self._is_forward:
            self._own_time.pause()

    def _after_wait(self, *_: object) -> None:
        if self._is_forward:
            self._own_time.resume()
