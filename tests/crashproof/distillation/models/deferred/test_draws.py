from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.models.causal_lm import new_model
from crashproof.distillation.models.deferred.draws import DrawingLater
from crashproof.distillation.models.deferred.tensor import CannotDefer
from crashproof.distillation.models.deferred.weights import DeferredWeights
from crashproof.distillation.models.lora import add_adapters
from crashproof.distillation.settings.models import LoraOptions, ModelShape


class Layers(nn.Module):
    """Whatever layers do to their weights: a row of padding, a part drawn again, a scale, ones."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4, padding_idx=2)
        self.linear = nn.Linear(4, 5)
        self.norm = nn.LayerNorm(5)
        with torch.no_grad():
            self.linear.weight[1:3].uniform_()
            self.linear.weight.mul_(3)
        self.cell = nn.GRUCell(3, 3)


def drawn(make: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    """A module without memory, its weights as they are drawn later, and the next numbers of the generator."""
    weights = DeferredWeights()
    torch.manual_seed(3)
    with DrawingLater():
        module = make()
    weights.defer(module)
    after = torch.rand(3)
    torch.manual_seed(99)
    sources = weights.take(module)
    found = {name: source.whole().clone() for name, source in sources.items()}
    assert all(torch.equal(source.rows(1, 3), found[name][1:3]) for name, source in sources.items())
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(99)))
    return module, found, after


def assert_drawn_alike(make: Callable[[], nn.Module]) -> None:
    module, found, after = drawn(make)
    torch.manual_seed(3)
    expected = make()

    assert torch.equal(torch.rand(3), after), "the generator goes on alike"
    assert all(each.is_meta for each in module.parameters())
    assert not any(each.is_meta for each in module.buffers())
    assert dict(expected.named_parameters()).keys() == found.keys()
    assert [] == [name for name, each in expected.named_parameters() if not torch.equal(each, found[name])]
    flags = [[each.requires_grad for each in one.parameters()] for one in (expected, module)]
    assert flags[0] == flags[1]


@pytest.fixture
def make_llama(tokenizer: PreTrainedTokenizerFast) -> Callable[[], PreTrainedModel]:
    shape = ModelShape(d_model=16, num_layers=2, num_heads=2)
    return lambda: new_model(shape, tokenizer=tokenizer, max_length=32)


def test_a_new_model_is_drawn_later_as_it_is_at_once(make_llama: Callable[[], PreTrainedModel]) -> None:
    assert_drawn_alike(make_llama)


def test_so_are_adapters(make_llama: Callable[[], PreTrainedModel]) -> None:
    options = LoraOptions(rank=2, target_modules=("q_proj", "embed_tokens"))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings")
        assert_drawn_alike(lambda: add_adapters(make_llama(), options))


def test_so_is_whatever_is_done_in_place() -> None:
    assert_drawn_alike(Layers)


def test_layers_that_share_a_weight_still_do(make_llama: Callable[[], PreTrainedModel]) -> None:
    module, found, _ = drawn(make_llama)

    assert isinstance(module, PreTrainedModel)
    assert module.get_input_embeddings().weight is module.get_output_embeddings().weight  # type: ignore[no-untyped-call]
    assert "lm_head.weight" not in found


@pytest.mark.parametrize(
    "look",
    [
        lambda linear: linear.weight.abs().max(),
        lambda linear: linear.bias.copy_(linear.weight[:, 0]),
        lambda linear: linear.weight.clone(),
        # PyTorch's own function does nothing for a meta tensor, and draws until all numbers lie within the bounds.
        lambda linear: nn.init.trunc_normal_(linear.weight),
        lambda linear: nn.init.orthogonal_(linear.weight),
    ],
    ids=["a norm", "a copy into another", "a copy", "a truncated normal", "an orthogonal matrix"],
)
def test_a_module_that_looks_at_its_weights_is_not_deferred(look: Callable[[nn.Linear], object]) -> None:
    def make() -> None:
        with torch.no_grad():
            look(nn.Linear(3, 4))

    with DrawingLater(), pytest.raises(CannotDefer):
        make()


def test_a_weight_that_nobody_draws_is_not_deferred() -> None:
    with DrawingLater():
        module = nn.Module()
        module.weight = nn.Parameter(torch.empty(3, 4))

    with pytest.raises(CannotDefer, match="not drawn as a whole"):
        DeferredWeights().defer(module)


def test_a_buffer_is_drawn_at_once() -> None:
    module = nn.Module()
    torch.manual_seed(3)
    with DrawingLater():
        module.register_buffer("noise", torch.empty(3).normal_())

    DeferredWeights().defer(module)

    torch.manual_seed(3)
    assert torch.equal(torch.empty(3).normal_(), module.noise)
