from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crashproof.distillation.models.causal_lm import load_model, new_model, require_length, save_model
from crashproof.distillation.settings.models import ModelShape
from crashproof.distillation.text.tokenizer import load_tokenizer
from crashproof.errors import ConfigError

MakeModel = Callable[..., PreTrainedModel]


def test_the_vocabulary_is_the_tokenizers_unless_a_larger_one_is_asked_for(make_model: MakeModel) -> None:
    assert [270, 500] == [model.config.vocab_size for model in (make_model(), make_model(vocab_size=500))]


def test_the_same_generator_state_makes_the_same_weights(make_model: MakeModel) -> None:
    one, same, other = (make_model(seed).state_dict() for seed in (0, 0, 1))

    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "shape, message",
    [
        ({"vocab_size": 100}, "A model vocabulary of 100 cannot hold the tokenizer's 270 entries"),
        ({"d_model": 30, "num_heads": 4}, "d_model 30 does not divide into 4 heads"),
        ({"d_model": 12, "num_heads": 4}, "d_model 12 does not divide into 4 heads of an even width"),
    ],
    ids=["a small vocabulary", "uneven heads", "an odd width"],
)
def test_a_shape_that_cannot_be_built_is_an_error(
    tokenizer: PreTrainedTokenizerFast, shape: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        new_model(ModelShape(**shape), tokenizer=tokenizer, max_length=32)  # type: ignore[arg-type]


def test_a_saved_model_comes_back_bit_for_bit_with_its_tokenizer(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = make_model()
    save_model(model, tokenizer, tmp_path / "student", origin={"step": 1})

    loaded = load_model(tmp_path / "student").state_dict()

    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
    assert 270 == len(load_tokenizer(tmp_path / "student"))
    assert ["student"] == [path.name for path in tmp_path.iterdir()]


def test_a_save_that_is_cut_off_leaves_nothing_under_the_name(make_model: MakeModel, tmp_path: Path) -> None:
    class Breaks:
        def save_pretrained(self, folder: str) -> None:
            raise KeyboardInterrupt

    tokenizer: Any = Breaks()
    with pytest.raises(KeyboardInterrupt):
        save_model(make_model(), tokenizer, tmp_path / "student", origin={"step": 1})

    assert not (tmp_path / "student").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere is not a folder.*nothing is downloaded"):
        load_model(tmp_path / "nowhere")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no causal language model"):
        load_model(tmp_path)


def test_truncated_weights_are_an_error(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_model(make_model(), tokenizer, tmp_path / "model", origin={"step": 1})
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(ConfigError, match="holds no causal language model"):
        load_model(tmp_path / "model")


def test_a_model_that_accepts_fewer_tokens_than_the_data_may_have_is_an_error(make_model: MakeModel) -> None:
    config = make_model().config

    require_length(config, "student", 64)
    with pytest.raises(ConfigError, match=r"data\.max_length is 65, and the student takes 64 tokens"):
        require_length(config, "student", 65)
