"""The global batch, and the factors that make it up."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from crashproof.rules.identity.key_names import KeyPath, matches

__all__ = ["GlobalBatch", "is_factor"]

_PER_PROCESS = (
    "per_(device|gpu|process|replica|rank)_(train_)?batch_size "
    "(train_)?batch_size_per_(device|gpu|process|replica|rank) "
    "(train_)?micro_batch_size(_per_(gpu|device))? local_batch_size device_batch_size mbs"
)
_PER_PROCESS_BY_DEFAULT = "(train_)?batch_size"
"""If no key says more, and if none makes it the global one."""
_ACCUMULATION = (
    "gradient_accumulation(_steps)? grad_accum(ulation)?(_steps)? accumulate_grad_batches (grad_)?accumulation_steps "
    "accum(ulate)?_(steps|iters?|freq) batch_accumulation_per_replica iter_size update_freq"
)
_PROCESSES = "world_size num_processes num_gpus n_gpus? ngpus? num_replicas data_parallel_size dp_size"
_PER_NODE = "devices gpus (nproc|n?gpus|num_gpus)_per_node"
_NODES = "num_nodes n_nodes nnodes num_machines"
_GLOBAL = "(global|total|effective|total_train|global_train|train_global)_batch_size gbs"
_ELSEWHERE = "*eval* *valid* val test *infer* *generat* *teacher* *reward* *sampl* predict* *replay* *env*"
"""Sections with a batch of their own."""


class GlobalBatch(Struct, frozen=True, kw_only=True):
    """The samples of one optimizer step, as far as a config tells."""

    per_process: int | None
    accumulation: int
    processes: int | None
    """None if the config does not say."""
    stated: int | None
    """The product, where the config has it as a key."""

    @classmethod
    def of(cls, leaves: Mapping[tuple[str, ...], object]) -> GlobalBatch:
        """Of a config, whose leaves are given by the parts of their keys."""
        numbers = _Numbers(leaves)
        stated, per_process = numbers.of(_GLOBAL), numbers.of(_PER_PROCESS)
        by_default = numbers.of(_PER_PROCESS_BY_DEFAULT)
        if per_process is None:
            per_process = by_default
        elif stated is None:
            # DeepSpeed's `train_batch_size` beside a micro batch size.
            stated = by_default
        per_node = numbers.of(_PER_NODE)
        processes = numbers.of(_PROCESSES)
        if processes is None and per_node is not None:
            processes = per_node * (numbers.of(_NODES) or 1)
        accumulation = numbers.of(_ACCUMULATION) or 1
        return cls(per_process=per_process, accumulation=accumulation, processes=processes, stated=stated)

    def samples(self) -> int | None:
        """The samples of a step of all processes; None if the config does not tell."""
        if self.stated is not None:
            return self.stated
        if self.per_process is None or self.processes is None:
            return None
        return self.per_process * self.accumulation * self.processes

    def is_same(self, other: GlobalBatch) -> bool:
        """Whether two global batches are certainly equal; the number of processes is, if neither config has it."""
        if self.samples() is not None or other.samples() is not None:
            return self.samples() == other.samples()
        if self.per_process is None or other.per_process is None or self.processes != other.processes:
            return False
        return self.per_process * self.accumulation == other.per_process * other.accumulation


def is_factor(key: KeyPath) -> bool:
    """Whether a key is a factor of the global batch that does not count if the product is the same."""
    patterns = f"{_PER_PROCESS} {_PER_PROCESS_BY_DEFAULT} {_ACCUMULATION}"
    return matches(patterns, key.last) and not _is_elsewhere(key)


class _Numbers:
    """The whole numbers of a config, by the last part of their keys."""

    def __init__(self, leaves: Mapping[tuple[str, ...], object]) -> None:
        self._numbers: dict[str, set[int]] = {}
        for parts, value in leaves.items():
            key, number = KeyPath.of(parts), _count(value)
            if number is not None and not _is_elsewhere(key):
                self._numbers.setdefault(key.last, set()).add(number)

    def of(self, patterns: str) -> int | None:
        """The number under a key of some patterns; None if there is none, or several that differ."""
        found = set().union(*(each for name, each in self._numbers.items() if matches(patterns, name)))
        return found.pop() if len(found) == 1 else None


def _count(value: object) -> int | None:
    """A number, or the length of a list of devices; None for what is automatic."""
    if isinstance(value, list):
        return len(value) or None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if value > 0 else None


def _is_elsewhere(key: KeyPath) -> bool:
    return any(matches(_ELSEWHERE, each) for each in key.sections)
