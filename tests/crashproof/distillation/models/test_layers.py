from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from crashproof.distillation.models.layers import decoder_layers, prepare_layers
from crashproof.distillation.models.lora import add_adapters
from crashproof.distillation.settings.models import LoraOptions
from crashproof.distillation.settings.train import TrainConfig
from crashproof.errors import ConfigError

CPU = torch.device("cpu")
IDS = torch.arange(12).view(2, 6)


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def test_layers_are_those_that_the_model_names(make_model: Callable[..., PreTrainedModel]) -> None:
    plain, adapted = make_model(num_layers=3), add_adapters(make_model(num_layers=3), LoraOptions())

    assert ["LlamaDecoderLayer"] * 3 == [type(layer).__name__ for layer in decoder_layers(plain)]
    assert 3 == len(decoder_layers(adapted))


def test_activations_computed_twice_give_the_same_gradients(make_model: Callable[..., PreTrainedModel]) -> None:
    expected = gradients(make_model(0))
    model = make_model(0)

    prepare_layers(model, TrainConfig(checkpoints_activations=True), CPU)

    found = gradients(model)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_missing_compiler_is_an_error_before_training(
    make_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")

    with pytest.raises(ConfigError, match=r"train\.compile needs a C"):
        prepare_layers(make_model(0), TrainConfig(compile=True), CPU)


def test_without_options_nothing_is_changed(make_model: Callable[..., PreTrainedModel]) -> None:
    model = make_model(0)

    prepare_layers(model, TrainConfig(), CPU)

    assert gradients(make_model(0)).keys() == gradients(model).keys()
