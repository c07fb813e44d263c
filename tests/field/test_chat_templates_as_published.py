"""Templates and tokenizers as published models have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chat_templates
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.answer_data import AnswerLine
from crashproof.distillation.data.source import Source
from crashproof.distillation.data.text_data import load_source, tokenized
from crashproof.distillation.evaluation.held_out_answers import _question
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.text.chat import render_chat, render_question
from crashproof.distillation.text.tokenizer import end_id, load_tokenizer, train_tokenizer
from crashproof.errors import ConfigError, DataError

TEXTS = ["The quick brown fox jumps over the lazy dog. " * 5, "What is two and two? Two and two is four. " * 5]

U1 = {"role": "user", "content": "Two and two?"}
A1 = {"role": "assistant", "content": "<think>\nCount.\n</think>\n\nFour."}
U2 = {"role": "user", "content": "And two?"}
A2 = {"role": "assistant", "content": "<think>\nAdd.\n</think>\n\nSix."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"numbers": [2, 2]}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "4"}
PLAIN = {"role": "assistant", "content": "Four."}
SIX = {"role": "assistant", "content": "Six."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "tiny"
    train_tokenizer(TEXTS, vocab_size=300, folder=folder)
    return folder


@pytest.fixture
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return train_tokenizer([], vocab_size=300, folder=folder)


@pytest.fixture
def opening_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """As Gemma's and Llama's: a text begins with `<bos>`."""
    return with_bos(tokenizer)


def with_bos(tokenizer: PreTrainedTokenizerFast, *, with_end: bool = False) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    specials = [("<bos>", tokenizer.bos_token_id), ("<|end|>", tokenizer.eos_token_id)]
    template = "<bos> $A <|end|>" if with_end else "<bos> $A"
    backend.post_processor = TemplateProcessing(single=template, special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<|end|>", pad_token="<|pad|>"
    )


def turns(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, **more: Any) -> list[str]:
    text, spans = render_chat(messages, tokenizer, **more)
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize(
    "template, messages, expected",
    [
        pytest.param("R1", [U1, A1], ["\n\nFour.<|end|>"], id="r1-one-turn"),
        pytest.param("R1", [U1, A1, U2, A2], ["\n\nFour.<|end|>", "\n\nSix.<|end|>"], id="r1-two-turns"),
        pytest.param("R1", [U1, PLAIN | {"content": "<b>4</b>"}], ["<b>4</b><|end|>"], id="r1-begins-like-a-thought"),
        pytest.param("QWEN", [U1, A1], ["<think>\nCount.\n</think>\n\nFour.<|im_end|>\n"], id="qwen-one-turn"),
        pytest.param(
            "QWEN",
            [U1, A1, U2, A2],
            ["Four.<|im_end|>\n", "<think>\nAdd.\n</think>\n\nSix.<|im_end|>\n"],
            id="qwen-two-turns",
        ),
        pytest.param(
            "QWEN_THINKING",
            [U1, A1, U2, A2],
            ["Four.<|im_end|>\n", "Add.\n</think>\n\nSix.<|im_end|>\n"],
            id="thinking-two-turns",
        ),
        pytest.param(
            "QWEN_THINKING",
            [U1, PLAIN | {"reasoning_content": "Count."}],
            ["Count.\n</think>\n\nFour.<|im_end|>\n"],
            id="thinking-in-its-own-field",
        ),
        pytest.param(
            "QWEN_THINKING",
            [U1, CALLING, RESULT, PLAIN, U2, SIX],
            [
                '<tool_call>\n{"name": "add", "arguments": {"numbers": [2, 2]}}\n</tool_call><|im_end|>\n',
                "Four.<|im_end|>\n",
                "\n</think>\n\nSix.<|im_end|>\n",
            ],
            id="thinking-with-calls",
        ),
        pytest.param("MISTRAL", [U1, PLAIN, U2, SIX], [" Four.<|end|>", " Six.<|end|>"], id="mistral"),
        pytest.param(
            "GEMMA", [U1, PLAIN | {"content": " Four.\n"}], ["Four.<end_of_turn>\n"], id="gemma-strips-white-space"
        ),
        pytest.param("ADDS_SYSTEM", [U1, PLAIN], ["Four.<|im_end|>\n"], id="adds-a-system-message"),
        pytest.param("GEMMA", [PLAIN, U2, SIX], ["Four.<end_of_turn>\n", "Six.<end_of_turn>\n"], id="answer-first"),
        pytest.param(
            "TEXT_ARGUMENTS",
            [U1, CALLING, RESULT, PLAIN],
            ['add\n{"numbers": [2, 2]};', "Four.;"],
            id="text-arguments",
        ),
    ],
)
def test_the_assistants_turns_are_found_in_templates_of_published_models(
    tokenizer: PreTrainedTokenizerFast, template: str, messages: list[dict[str, Any]], expected: list[str]
) -> None:
    tokenizer.chat_template = getattr(chat_templates, template)

    assert expected == turns(messages, tokenizer)


def test_tools_before_the_last_question_alone_do_not_hide_earlier_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = chat_templates.MISTRAL
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]

    found = turns([U1, PLAIN, U2, SIX], tokenizer, tools=tools)

    assert ["Four.<|end|>", "Six.<|end|>"] == [turn.strip() for turn in found]


def test_an_answer_that_repeats_the_question_is_not_taken_for_it(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = chat_templates.R1
    messages = [{"role": "user", "content": "ping"}, {"role": "assistant", "content": "ping"}]

    text, spans = render_chat([*messages, *messages], tokenizer)

    assert ["ping<|end|>"] * 2 == [text[slice(*span)] for span in spans]
    assert "<User>ping<Assistant>" == text[: spans[0][0]]


def test_named_templates_are_chosen_as_transformers_chooses_them(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = {"default": "default", "tool_use": "tools"}

    assert "default" == render_question([U1], tokenizer)
    assert "tools" == render_question([U1], tokenizer, tools=[{"type": "function", "function": {"name": "add"}}])


def test_named_templates_without_a_default_are_refused_in_words(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = {"rag": "text"}

    with pytest.raises(ValueError, match=r"(?s)the chat template refuses the messages .*rag"):
        render_question([U1], tokenizer)


def test_a_template_with_todays_date_reads_the_same_on_another_day(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer.chat_template = chat_templates.DATED

    with caplog.at_level("INFO", logger="crashproof"):
        texts = [render_chat([U1, PLAIN], tokenizer)[0] for _ in range(2)]

    assert ["26 Jul 2024[user]Two and two?;[assistant]Four.;"] * 2 == texts
    assert 1 == sum("today's date" in message for message in caplog.messages)


@pytest.mark.parametrize(
    "template, messages, said",
    [
        pytest.param("GEMMA", [{"role": "system", "content": "Be brief."}, U1, PLAIN], "System role", id="system"),
        pytest.param("MISTRAL", [U1, U2, PLAIN], "must alternate", id="two-questions"),
        pytest.param("R1", [U1, {"role": "assistant", "content": 4}], "refuses the messages", id="content-no-text"),
    ],
)
def test_what_a_template_refuses_is_an_error_that_quotes_it(
    tokenizer: PreTrainedTokenizerFast, template: str, messages: list[dict[str, Any]], said: str
) -> None:
    tokenizer.chat_template = getattr(chat_templates, template)

    with pytest.raises(ValueError, match=said):
        render_chat(messages, tokenizer)


def tokens_of(
    sample: dict[str, Any], tokenizer: PreTrainedTokenizerFast, cache: Path, *, max_length: int = 64
) -> list[list[int]]:
    source = Source.generated([sample | {"line": 1}])
    data = tokenized(source, DataConfig(max_length=max_length), tokenizer, cache)
    return [each.ids for each in data.samples()]


@pytest.mark.parametrize(
    "sample",
    [
        pytest.param({"text": "Two and two is four."}, id="text"),
        pytest.param({"prompt": "Two and two is", "answer": " four."}, id="prompt"),
        pytest.param({"text": "<bos>Two and two is four."}, id="text-that-begins-with-it"),
    ],
)
def test_a_plain_text_begins_as_the_tokenizer_begins_it(
    opening_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, sample: dict[str, Any]
) -> None:
    expected = [*opening_tokenizer("Two and two is four.")["input_ids"], end_id(opening_tokenizer)]

    assert opening_tokenizer.bos_token_id == expected[0]
    assert [expected] == tokens_of(sample, opening_tokenizer, tmp_path)


def test_an_end_that_the_tokenizer_adds_itself_is_not_doubled(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer = with_bos(tokenizer, with_end=True)

    expected = tokenizer("Two and two is four.")["input_ids"]

    assert [expected] == tokens_of({"text": "Two and two is four."}, tokenizer, tmp_path)


def test_a_long_text_begins_anew_in_each_of_its_parts(
    opening_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    parts = tokens_of({"text": TEXTS[0]}, opening_tokenizer, tmp_path, max_length=16)
    bos = opening_tokenizer.bos_token_id

    assert {bos} == {part[0] for part in parts}
    assert max(map(len, parts)) == 16
    assert (
        opening_tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
        == [token for part in parts for token in part[1:]][:-1]
    )


def test_a_template_that_begins_with_it_gets_no_second_one(
    opening_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    for template in (chat_templates.GEMMA, None):
        opening_tokenizer.chat_template = template
        [ids] = tokens_of({"messages": [U1, PLAIN]}, opening_tokenizer, tmp_path, max_length=128)

        assert [0] == [place for place, token in enumerate(ids) if token == opening_tokenizer.bos_token_id]


def test_a_tokenizer_that_adds_nothing_stays_as_it_is(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    expected = [*tokenizer("Two and two.")["input_ids"], end_id(tokenizer)]

    assert [expected] == tokens_of({"text": "Two and two."}, tokenizer, tmp_path)


def test_a_line_that_a_template_refuses_is_named(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.chat_template = chat_templates.GEMMA
    path = tmp_path / "chats.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'
        '{"messages": [{"role": "system", "content": "Be brief"}, {"role": "assistant", "content": "Hello"}]}\n'
    )
    config = DataConfig(path=path)

    with pytest.raises(DataError, match=r"chats.jsonl, line 2: .*System role not supported"):
        tokenized(load_source(config), config, tokenizer, tmp_path)


def test_named_templates_and_templates_in_files_are_loaded(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.chat_template = {"default": "default", "tool_use": "tools"}
    tokenizer.save_pretrained(str(tmp_path))

    assert "default" == render_question([U1], load_tokenizer(tmp_path))

    (tmp_path / "chat_template.jinja").write_text("from a file")

    assert "from a file" == render_question([U1], load_tokenizer(tmp_path))


@pytest.mark.parametrize("named", [1, [1, 0]], ids=["one", "a-list"])
def test_an_end_that_only_the_model_names_is_taken_from_it(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, named: object, caplog: pytest.LogCaptureFixture
) -> None:
    save_without_end(tokenizer, tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))

    with caplog.at_level("INFO", logger="crashproof"):
        assert 1 == end_id(load_tokenizer(tmp_path))
    assert "names no end of text; <|end|> is from generation_config.json" in caplog.text


def test_a_tokenizer_without_an_end_is_refused_in_words(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save_without_end(tokenizer, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": null}')

    with pytest.raises(ConfigError, match="has no end-of-text token"):
        tokens_of({"text": "Two."}, load_tokenizer(tmp_path), tmp_path / "cache")


def test_a_damaged_tokenizer_is_refused_in_words(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')

    with pytest.raises(ConfigError, match="contains no tokenizer that transformers can load"):
        load_tokenizer(tmp_path)


def save_without_end(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    tokenizer.save_pretrained(str(folder))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_student_is_asked_as_it_was_taught(opening_tokenizer: PreTrainedTokenizerFast) -> None:
    """With `<bos>` before a plain prompt, once, also where the template writes it."""
    bos = opening_tokenizer.bos_token_id
    for template in (chat_templates.GEMMA, None):
        opening_tokenizer.chat_template = template
        said = {"answer": "2", "reply": {"role": "assistant", "content": "2"}, "rejected": None, "quality": None}
        plain = AnswerLine(prompt="Two?", messages=[], tools=None, is_cut=False, **said)
        chat = AnswerLine(prompt=None, messages=[U1], tools=None, is_cut=False, **said)

        assert [[0], [0]] == [
            [place for place, token in enumerate(_question(line, opening_tokenizer)) if token == bos]
            for line in (plain, chat)
        ]
