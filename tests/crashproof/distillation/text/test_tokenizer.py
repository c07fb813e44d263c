from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.text.tokenizer import (
    END_OF_TEXT,
    PADDING,
    load_tokenizer,
    tokenizer_hash,
    train_tokenizer,
)
from crashproof.errors import ConfigError


@pytest.mark.parametrize("text", ["plain", " led by a space", "naïve — 漢字 🙂", "a\n\n\tb\x00"])
def test_any_text_comes_back_as_it_was(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert text == tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))


def test_it_has_the_requested_size(tokenizer: PreTrainedTokenizerFast) -> None:
    assert 270 == len(tokenizer)
    assert (END_OF_TEXT, PADDING) == (tokenizer.eos_token, tokenizer.pad_token)


def test_it_is_trained_once_and_read_ever_after(tokenizer: PreTrainedTokenizerFast, tokenizer_folder: Path) -> None:
    before = (tokenizer_folder / "tokenizer.json").stat().st_mtime_ns

    again = train_tokenizer(["something else"], vocab_size=300, folder=tokenizer_folder)

    assert tokenizer_hash(tokenizer) == tokenizer_hash(again)
    assert before == (tokenizer_folder / "tokenizer.json").stat().st_mtime_ns


def test_the_same_text_makes_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    texts = ["one two three " * 9]
    one, other = (train_tokenizer(texts, vocab_size=262, folder=tmp_path / name) for name in ("a", "b"))

    assert tokenizer_hash(one) == tokenizer_hash(other)
    assert tokenizer_hash(one) != tokenizer_hash(tokenizer)


def test_a_tokenizer_without_padding_pads_with_its_end(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.pad_token = None
    tokenizer.save_pretrained(str(tmp_path / "unpadded"))

    assert END_OF_TEXT == load_tokenizer(tmp_path / "unpadded").pad_token


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path} contains no tokenizer"):
        load_tokenizer(tmp_path)
