from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.text.token_bytes import BytesToIds, TokenBytes, first_difference, token_bytes
from crashproof.distillation.text.tokenizer import END_OF_TEXT, PADDING, load_tokenizer
from crashproof.errors import ModelMismatch

TEXTS = ["plain", "led by a space", "naïve — 漢字 🙂", "a\n\n\tb\x00", "Two and two is four."]


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]


def llama_like() -> PreTrainedTokenizerFast:
    """BPE over pieces with `▁`, and a token for each byte that no piece reaches."""
    pieces = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "a",
        "t",
        "h",
        "e",
        "▁t",
        "▁th",
        "▁the",
        "▁a",
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "a")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>"])
    return wrapped(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 9, trainer)
    return wrapped(tokenizer)


def together(tokenizer: PreTrainedTokenizerFast, text: str) -> bytes:
    """The bytes of a text's tokens, one after the other."""
    tokens = token_bytes(tokenizer)
    found = [tokens[number] for number in tokenizer.encode(text, add_special_tokens=False)]
    assert None not in found
    return b"".join(token.content for token in found if token is not None)


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_tokens_give_the_text_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert text.encode() == together(tokenizer, text)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_and_their_fallbacks_give_the_text_back_behind_one_space(text: str) -> None:
    assert b" " + text.encode() == together(llama_like(), text)


@pytest.mark.parametrize("text", ["Two and two is four.", "led by a space"])
def test_pieces_without_fallbacks_do_too(text: str) -> None:
    assert b" " + text.encode() == together(unigram(), text)


def test_every_byte_has_a_byte_level_token(tokenizer: PreTrainedTokenizerFast) -> None:
    contents = {token.content for token in token_bytes(tokenizer) if token is not None}

    assert {bytes([byte]) for byte in range(256)} <= contents


def test_special_tokens_are_marked(tokenizer: PreTrainedTokenizerFast) -> None:
    special = [token for token in token_bytes(tokenizer) if token is not None and token.is_special]

    assert [PADDING.encode(), END_OF_TEXT.encode()] == [token.content for token in special]


def test_an_added_word_stands_for_itself(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens(["naïve Ġword"])

    assert TokenBytes(content="naïve Ġword".encode()) == token_bytes(tokenizer)[-1]


def test_a_token_outside_the_alphabet_stands_for_itself_as_it_does_when_it_is_decoded() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "漢": 1}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()

    assert [b"a", "漢".encode()] == [token.content for token in token_bytes(wrapped(tokenizer)) if token is not None]


def test_an_id_that_is_not_used_stands_for_nothing() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 2}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()

    assert token_bytes(wrapped(tokenizer))[1] is None


def test_a_piece_that_only_looks_like_a_fallback_is_a_piece() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"<0xZZ>": 0, "<0x0A>": 1}, merges=[], byte_fallback=True))

    assert [
        TokenBytes(content=b"<0xZZ>"),
        TokenBytes(content=b"\n", is_fallback=True),
    ] == token_bytes(wrapped(tokenizer))


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "##ing": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()

    with pytest.raises(ModelMismatch, match=r"in memory is neither byte-level nor SentencePiece"):
        token_bytes(wrapped(tokenizer))


def test_a_tokenizer_differs_from_itself_nowhere(tokenizer: PreTrainedTokenizerFast, tokenizer_folder: Path) -> None:
    assert None is first_difference(token_bytes(tokenizer), token_bytes(load_tokenizer(tokenizer_folder)))


@pytest.mark.parametrize(
    "there, here, words",
    [
        ([b"a", b"b"], [b"a", b"c"], "token 1 is b'b' there and b'c' here"),
        ([b"a"], [b"a", b"c"], "token 1 is nothing there and b'c' here"),
        ([b"a", None], [b"a", b"\xff"], r"token 1 is nothing there and b'\xff' here"),
    ],
    ids=["other bytes", "one more", "a hole"],
)
def test_the_first_token_that_differs_is_named(
    there: list[bytes | None], here: list[bytes | None], words: str
) -> None:
    one, other = (
        [None if content is None else TokenBytes(content=content) for content in contents]
        for contents in (there, here)
    )

    assert words == str(first_difference(one, other))


def test_a_special_token_is_not_the_word_that_spells_it() -> None:
    special, word = TokenBytes(content=b"<s>", is_special=True), TokenBytes(content=b"<s>")

    assert "token 0 is the special token <s> there and b'<s>' here" == str(first_difference([special], [word]))


def test_tokens_that_are_spelled_differently_can_mean_the_same() -> None:
    byte_level = Tokenizer(models.BPE(vocab={"Ġa": 0}, merges=[]))
    byte_level.decoder = decoders.ByteLevel()
    pieces = Tokenizer(models.BPE(vocab={"▁a": 0}, merges=[]))
    pieces.decoder = decoders.Metaspace()

    assert None is first_difference(token_bytes(wrapped(byte_level)), token_bytes(wrapped(pieces)))


def test_bytes_are_found_again(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = token_bytes(tokenizer)
    ids = BytesToIds(tokens)

    assert [number for number, token in enumerate(tokens) if token is not None and not token.is_special] == [
        ids.find(token.content) for token in tokens if token is not None and not token.is_special
    ]


def test_bytes_without_a_token_and_names_of_special_tokens_are_not_found(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = BytesToIds(token_bytes(tokenizer))

    assert [None, None, None] == [ids.find(content) for content in (b"", b"no such token", END_OF_TEXT.encode())]


def test_a_piece_is_found_rather_than_the_fallback_for_its_byte() -> None:
    tokenizer = llama_like()

    ids = BytesToIds(token_bytes(tokenizer))

    assert tokenizer.convert_tokens_to_ids("a") == ids.find(b"a")
    assert tokenizer.convert_tokens_to_ids("<0x62>") == ids.find(b"b")
