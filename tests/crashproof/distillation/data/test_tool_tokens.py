import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tool_lines import TEMPLATES, WEATHER, WEB, asking, call, calling, line, one_call, result, whole
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.name_trie import allowed_next
from crashproof.distillation.data.tool_conversations import read_conversation
from crashproof.distillation.data.tool_spans import render_conversation
from crashproof.distillation.data.tool_tokens import ARGUMENTS, INTEGRATION, JSON, SELECTION, ToolTokens, tool_tokens
from crashproof.distillation.losses.tool_calls import allowed_entries
from crashproof.distillation.text.json_grammar import JsonGrammars
from crashproof.distillation.text.tokenizer import train_tokenizer

Tokens = Callable[..., ToolTokens]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that has seen calls, and merges across the ends of their parts."""
    texts = ['<tool_call>\n{"name": "search_web", "arguments": {"city": "Rome", "query": "x"}}\n</tool_call>'] * 50
    made = tmp_path_factory.mktemp("tokenizer") / "calls"
    train_tokenizer([*texts, *[json.dumps([WEATHER, WEB])] * 20], vocab_size=400, folder=made)
    return made


@pytest.fixture
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return train_tokenizer([], vocab_size=400, folder=folder)


@pytest.fixture
def tokens(tokenizer: PreTrainedTokenizerFast) -> Tokens:
    def made(sample: dict[str, Any], template: str | None = None, *, ends_with_call: bool = False) -> ToolTokens:
        tokenizer.chat_template = template
        conversation = read_conversation(sample | {"line": 1}, Path("x"))
        chat = render_conversation(conversation, tokenizer, min_words=3)
        offered = conversation.offered()
        return tool_tokens(chat, offered, tokenizer, JsonGrammars(tokenizer), ends_with_call=ends_with_call)

    return made


def text_of(made: ToolTokens, part: int, tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.decode([token for token, parts in zip(made.ids, made.parts, strict=True) if parts & part]))


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_selection_and_arguments_are_the_whole_turn_and_share_no_token(tokens: Tokens, template: str | None) -> None:
    made = tokens(one_call(), template, ends_with_call=True)

    for is_learned, parts in zip(made.is_learned, made.parts, strict=True):
        assert is_learned == (parts & (SELECTION | ARGUMENTS) in (SELECTION, ARGUMENTS))


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_each_part_covers_its_characters(
    tokens: Tokens, tokenizer: PreTrainedTokenizerFast, template: str | None
) -> None:
    made = tokens(whole(), template)

    assert '{"city": "Rome", "days": 2}' in text_of(made, JSON, tokenizer)
    assert len(text_of(made, JSON, tokenizer)) <= len('{"city": "Rome", "days": 2}') + 4
    assert "search" in text_of(made, SELECTION, tokenizer)
    assert "city" not in text_of(made, SELECTION, tokenizer)
    assert "21.5" in text_of(made, INTEGRATION, tokenizer)
    assert "degrees" not in text_of(made, INTEGRATION, tokenizer)


def test_the_built_in_template_has_these_parts(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> None:
    made = tokens(one_call())

    assert '<tool_call>\n{"name": "search",' == text_of(made, SELECTION, tokenizer).rstrip(' "')
    assert text_of(made, ARGUMENTS, tokenizer).endswith('"Rome"}}\n</tool_call><|end|>\n')


def test_what_stands_between_two_calls_leads_to_the_second(
    tokens: Tokens, tokenizer: PreTrainedTokenizerFast
) -> None:
    made = tokens(line(asking(), calling(call("search", {"city": "Rome"}), call("search_web", {"query": "x"}, 2))))

    assert 2 == text_of(made, SELECTION, tokenizer).count("<tool_call>")
    assert 1 == text_of(made, ARGUMENTS, tokenizer).count("</tool_call>")
    assert 2 == len(made.grammars)


def test_a_conversation_that_ends_with_its_call_is_read_no_further(
    tokens: Tokens, tokenizer: PreTrainedTokenizerFast
) -> None:
    made = tokens(line(*whole()["messages"]), ends_with_call=True)

    assert tokenizer.decode(made.ids).endswith("</tool_call><|end|>\n")
    assert "search" in text_of(made, SELECTION, tokenizer)


def test_where_a_longer_name_begins_alike_the_end_of_the_name_is_a_choice(
    tokens: Tokens, tokenizer: PreTrainedTokenizerFast
) -> None:
    made = tokens(one_call())

    whole_text = tokenizer.decode(made.ids)
    spelled = []
    for name in ("search", "search_web", "clock"):
        at = whole_text.rindex('{"name": "search"') + len('{"name": "')
        text = whole_text[:at] + name + whole_text[at + len("search") :]
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        stop = next(place for place, (_, end) in enumerate(encoded["offset_mapping"]) if end > at + len(name))
        spelled.append(encoded["input_ids"][: stop + 1])
    dense = {place: ids for place, ids in enumerate(allowed_next(spelled[0], spelled)) if len(ids) > 1}
    assert dense == made.choices
    # Where `clock` parts, and where `search_web` does.
    assert 2 == len(made.choices)


def test_a_tool_that_is_offered_alone_is_no_choice(tokens: Tokens) -> None:
    assert {} == tokens(line(asking(), calling(call("search", {"city": "Rome"})), tools=[WEATHER])).choices


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_the_grammar_of_a_call_allows_its_own_tokens(
    tokens: Tokens, tokenizer: PreTrainedTokenizerFast, template: str | None
) -> None:
    made = tokens(whole(), template)

    ((first, end, grammar),) = made.grammars
    masks = JsonGrammars(tokenizer).masks(grammar, made.ids[first:end])
    is_allowed = allowed_entries(masks, len(tokenizer))
    assert all(is_allowed[place, token] for place, token in enumerate(made.ids[first:end]))
    assert [bool(parts & JSON) for parts in made.parts] == [first <= at < end for at in range(len(made.ids))]


def test_a_token_across_the_end_of_the_arguments_is_judged_with_the_frame(
    tokens: Tokens, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.add_tokens([AddedToken('"}}', normalized=False), AddedToken(': {"', normalized=False)])

    made = tokens(one_call())

    ((first, end, grammar),) = made.grammars
    spelled = [tokenizer.decode([token]) for token in made.ids[first:end]]
    assert (': {"', '"}}') == (spelled[0], spelled[-1])
    grammars = JsonGrammars(tokenizer)
    is_allowed = allowed_entries(grammars.masks(grammar, made.ids[first:end]), len(tokenizer))
    # Beside the token itself, what spells a beginning of it.
    assert {":", ': {"'} <= {tokenizer.decode([token]) for token in is_allowed[0].nonzero().flatten().tolist()}
    assert is_allowed[-1, made.ids[end - 1]]
    assert not is_allowed[0, tokenizer.convert_tokens_to_ids("{")]


def test_no_tokens_are_left_out_of_a_long_conversation(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> None:
    messages = whole()["messages"]
    second = [calling(call("search_web", {"query": "é 😀"}, 2)), result("[]", 2), messages[-1]]

    made = tokens(line(*messages, asking(), *second))

    assert 2 == text_of(made, INTEGRATION, tokenizer).count("21.5")
    assert '{"query": "é 😀"}' in text_of(made, JSON, tokenizer)


def test_a_call_that_the_engine_reads_otherwise_says_where(tokens: Tokens) -> None:
    tool = {
        "type": "function",
        "function": {"name": "day", "parameters": {"properties": {"on": {"type": "string", "format": "date"}}}},
    }

    with pytest.raises(ValueError, match="does not allow what its arguments contain after"):
        tokens(line(asking(), calling(call("day", {"on": "tomorrow"})), tools=[tool]))
