"""Configs as programs keep them: each becomes plain values, the same in every process, or is refused in words."""

from __future__ import annotations

import argparse
import datetime
import enum
import functools
import json
from collections import UserString, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from crashproof import ProgressTracker, TrackerSettings, get_recovery_checkpoint
from crashproof.errors import ConfigError
from crashproof.rules.identity import canonical_config, config_hash, is_another_run

QUIET = TrackerSettings(has_heartbeat=False)


@dataclass
class Optimizer:
    name: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    extra: dict[str, Any] = field(default_factory=dict)


class Struct(msgspec.Struct):
    lr: float = 0.1


class Kind(enum.Enum):
    SFT = "sft"


class TextKind(enum.StrEnum):
    SFT = "sft"


class Level(enum.IntEnum):
    HIGH = 3


class ModelConfig:
    """As the configs of `transformers` and `ml_collections`."""

    def to_dict(self) -> dict[str, Any]:
        return {"hidden_size": 64}


class Unreadable(Mapping[str, object]):
    """As a config with a missing value, which raises when it is read."""

    def __getitem__(self, key: str) -> object:
        raise LookupError("Missing mandatory value: data.path")

    def __iter__(self) -> Iterator[str]:
        return iter(["path"])

    def __len__(self) -> int:
        return 1


class WithoutText:
    def __str__(self) -> str:
        raise RuntimeError("closed")

    __repr__ = __str__


@pytest.mark.parametrize(
    "value, expected",
    [
        pytest.param(np.float64(0.1), 0.1, id="numpy-double"),
        pytest.param(np.float64("nan"), "nan", id="numpy-nan"),
        pytest.param(np.bool_(True), True, id="numpy-bool"),
        pytest.param(np.int8(-3), -3, id="numpy-int"),
        pytest.param(np.str_("adamw"), "adamw", id="numpy-text"),
        pytest.param(np.complex64(1j), "1j", id="numpy-complex"),
        pytest.param(np.datetime64("2024-01-01"), "2024-01-01", id="numpy-date"),
        pytest.param(np.array([1.0, np.inf]), [1.0, "inf"], id="array"),
        pytest.param(np.array([["a"], ["b"]]), [["a"], ["b"]], id="array-of-texts"),
        pytest.param(np.longdouble(0.5), "0.5", id="numpy-long-double"),
        pytest.param(torch.tensor(0.5), 0.5, id="tensor-without-dimensions"),
        pytest.param(torch.tensor([1, 2]), [1, 2], id="tensor"),
        pytest.param(torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True), [0.5], id="tensor-with-gradient"),
        pytest.param(torch.float16, "torch.float16", id="type-of-a-tensor"),
        pytest.param(torch.device("cuda", 0), "cuda:0", id="device"),
        pytest.param(torch.Size([2, 3]), [2, 3], id="shape"),
        pytest.param(Decimal("0.10"), "0.10", id="decimal"),
        pytest.param(Fraction(1, 3), "1/3", id="fraction"),
        pytest.param(2**63, 2**63, id="int-of-64-bits"),
        pytest.param(2**64, "18446744073709551616", id="int-beyond-64-bits"),
        pytest.param(-(2**70), "-1180591620717411303424", id="negative-int-beyond-64-bits"),
        pytest.param(1 << 20_000, hex(1 << 20_000), id="int-beyond-decimal-digits"),
        pytest.param(Kind.SFT, "Kind.SFT", id="enum"),
        pytest.param(TextKind.SFT, "sft", id="enum-of-texts"),
        pytest.param(Level.HIGH, 3, id="enum-of-numbers"),
        pytest.param(datetime.date(2024, 1, 2), "2024-01-02", id="date"),
        pytest.param(datetime.timedelta(hours=1), "1:00:00", id="duration"),
        pytest.param(Path("data/a.jsonl"), "data/a.jsonl", id="path"),
        pytest.param(Path("na\udcefve"), "na\\udcefve", id="path-that-is-no-utf8"),
        pytest.param("\ud800", "\\ud800", id="half-a-character"),
        pytest.param(UserString("text"), "text", id="text-of-another-class"),
        pytest.param(b"\xff", "b'\\xff'", id="bytes"),
        pytest.param({1, "1", 2}, [1, "1", 2], id="set-of-both-kinds"),
        pytest.param({"b": 1, "a": 2}.keys(), ["a", "b"], id="keys-of-a-mapping"),
        pytest.param(deque([1, 2]), [1, 2], id="deque"),
        pytest.param(range(3), [0, 1, 2], id="range"),
        pytest.param(range(10**12), "range(0, 1000000000000)", id="endless-range"),
        pytest.param(Optimizer(), {"name": "adamw", "betas": [0.9, 0.95], "extra": {}}, id="dataclass"),
        pytest.param(Struct(), {"lr": 0.1}, id="struct"),
        pytest.param(argparse.Namespace(lr=0.1), {"lr": 0.1}, id="arguments-of-a-command"),
        pytest.param(SimpleNamespace(lr=np.float32(0.5)), {"lr": 0.5}, id="namespace"),
        pytest.param(ModelConfig(), {"hidden_size": 64}, id="config-of-a-model"),
        pytest.param(json, "<module json>", id="module"),
        pytest.param(len, "<built-in function len>", id="function"),
        pytest.param(Optimizer, f"<class '{__name__}.Optimizer'>", id="class"),
        pytest.param(WithoutText(), "<WithoutText>", id="object-without-text"),
        pytest.param(functools.partial(len), "functools.partial(<built-in function len>)", id="partial-function"),
    ],
)
def test_a_value_becomes_plain_and_is_read_back_as_itself(value, expected):
    canonical = canonical_config({"setting": value})

    assert {"setting": expected} == canonical
    assert canonical == json.loads(json.dumps(canonical, allow_nan=False)) == canonical_config(canonical)
    assert config_hash(canonical)


def test_a_model_of_pydantic_becomes_its_fields():
    pydantic = pytest.importorskip("pydantic")
    settings = pydantic.create_model("Settings", lr=(float, 0.1), where=(Path, Path("here")))

    assert {"train": {"lr": 0.1, "where": "here"}} == canonical_config({"train": settings()})
    assert {"lr": 0.1, "where": "here"} == canonical_config(settings())


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: (each for each in [1]), id="generator"),
        pytest.param(lambda: lambda x: x, id="lambda"),
        pytest.param(lambda: object(), id="object"),
        pytest.param(lambda: torch.Generator(), id="random-state"),
        pytest.param(lambda: iter([1]), id="iterator"),
    ],
)
def test_an_object_is_the_same_in_every_process(make):
    kept = [make(), make()]
    first, second = (canonical_config({"key": each}) for each in kept)

    assert first == second
    assert "0x" not in str(first)


def test_a_generator_is_not_consumed():
    numbers = (each for each in [1, 2])
    canonical_config({"key": numbers})

    assert [1, 2] == list(numbers)


def test_a_large_array_is_kept_as_a_digest_that_tells_it_apart():
    before, after = np.zeros((100, 100)), np.zeros((100, 100))
    after[5, 5] = 1e-9
    first, second = (canonical_config({"init": each}) for each in (before, after))

    assert first["init"].startswith("ndarray float64 (100, 100) sha256 ")
    assert is_another_run(first, second)


@pytest.mark.parametrize(
    "config, expected",
    [
        pytest.param({None: 1}, {"None": 1}, id="none"),
        pytest.param({"\ud800": 1}, {"\\ud800": 1}, id="half-a-character"),
        pytest.param({(1, 2): 1}, {"(1, 2)": 1}, id="tuple"),
        pytest.param({Kind.SFT: 1}, {"Kind.SFT": 1}, id="enum"),
        pytest.param({TextKind.SFT: 1}, {"sft": 1}, id="enum-of-texts"),
        pytest.param({1: "number", "1": "text"}, {"1'": "number", "1": "text"}, id="number-and-its-text"),
        pytest.param({"1": "text", 1: "number"}, {"1": "text", "1'": "number"}, id="the-same-in-another-order"),
        pytest.param({"None": 1, None: 2, "None'": 3}, {"None": 1, "None''": 2, "None'": 3}, id="marked-name-taken"),
    ],
)
def test_a_key_that_is_no_text_becomes_one_whatever_the_order(config, expected):
    assert expected == canonical_config(config)


@pytest.mark.parametrize(
    "config", [Optimizer(), argparse.Namespace(name="adamw"), ModelConfig()], ids=lambda each: type(each).__name__
)
def test_a_config_may_be_an_object_with_named_fields(run_dir, config):
    ProgressTracker(run_dir / "progress", config, 10, settings=QUIET).close()
    (run_dir / "c.pt").write_bytes(b"weights")
    tracker = ProgressTracker(run_dir / "progress", config, 10, settings=QUIET)
    tracker.record_checkpoint(1, run_dir / "c.pt", 8)
    tracker.close()

    assert 2 == len(tracker.session.attempts)
    assert (run_dir / "c.pt", 8) == get_recovery_checkpoint(run_dir, config)


def looped(make: Any) -> dict[str, Any]:
    config: dict[str, Any] = {}
    config["data"] = {"parts": make(config)}
    return config


@pytest.mark.parametrize(
    "config, words",
    [
        pytest.param(looped(lambda config: config), r"holds itself, at data\.parts", id="mapping-in-itself"),
        pytest.param(looped(lambda config: [1, config]), r"holds itself, at data\.parts\.1", id="list-in-itself"),
        pytest.param({"a": Unreadable()}, r"Missing mandatory value.*at a\.", id="value-that-cannot-be-read"),
        pytest.param(
            {"a": torch.zeros(2, device="meta")}, r"Tensor cannot be read.*at a\.", id="tensor-without-data"
        ),
        pytest.param(functools.reduce(lambda inner, _: [inner], range(3000), 1), "must be a mapping", id="list"),
        pytest.param(
            {"a": functools.reduce(lambda inner, _: [inner], range(3000), 1)}, "nested too deeply", id="depth"
        ),
        pytest.param(None, "must be a mapping, got NoneType", id="none"),
        pytest.param("config.yaml", "must be a mapping, got str", id="text"),
        pytest.param(Optimizer, "must be a mapping, got type", id="class-instead-of-an-instance"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_words_before_the_run_begins(run_dir, config, words):
    with pytest.raises(ConfigError, match=words):
        ProgressTracker(run_dir / "progress", config, 10, settings=QUIET)

    assert not run_dir.exists()


def test_the_same_part_in_two_places_is_no_cycle():
    part = {"lr": 0.1}

    assert {"a": part, "b": [part, part]} == canonical_config({"a": part, "b": [part, part]})


def test_a_secret_in_an_object_is_hidden():
    assert "hunter2" not in str(canonical_config(argparse.Namespace(api_key="hunter2", lr=0.1)))
