import json
from typing import Any

import pytest
import regex
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.losses.tool_calls import allowed_entries
from crashproof.distillation.text.json_grammar import JsonGrammars, argument_grammar, problem_with_schema
from crashproof.errors import ModelMismatch

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"to": {"enum": ["fox", "four"]}, "days": {"type": "integer"}, "is": {"type": "boolean"}},
    "required": ["to"],
    "additionalProperties": False,
}
GAP = r"[ \n\r\t]*"
AS_A_REGEX = regex.compile(
    rf'\{{{GAP}"to"{GAP}:{GAP}"(?:fox|four)"(?:{GAP},{GAP}"days"{GAP}:{GAP}-?(?:0|[1-9]\d*))?'
    rf'(?:{GAP},{GAP}"is"{GAP}:{GAP}(?:true|false))?{GAP}\}}'
)
"""The same language, written by hand."""


@pytest.fixture
def grammars(tokenizer: PreTrainedTokenizerFast) -> JsonGrammars:
    return JsonGrammars(tokenizer)


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def allowed(masks: Tensor, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in allowed_entries(masks, len(tokenizer))]


TEXTS = ['{"to": "fox"}', '{"to":"four","days":-12,"is":true}', '{ "to": "four" ,\n"is": false }']


@pytest.mark.parametrize("text", TEXTS)
def test_masks_allow_what_a_second_matcher_takes(
    grammars: JsonGrammars, tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    grammar = argument_grammar(json.dumps(SCHEMA), before="", after="}\n")
    ids = ids_of(tokenizer, text + "}\n")

    found = allowed(grammars.masks(grammar, ids), tokenizer)

    for place, entries in enumerate(found):
        tried = [grammars.num_accepted(grammar, [*ids[:place], token]) > place for token in range(len(tokenizer))]
        assert [token for token, is_taken in enumerate(tried) if is_taken] == entries


@pytest.mark.parametrize("text", TEXTS)
def test_masks_allow_what_the_same_language_as_a_regex_begins_with(
    grammars: JsonGrammars, tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    ids = ids_of(tokenizer, text)

    found = allowed(grammars.masks(argument_grammar(json.dumps(SCHEMA), before="", after=""), ids), tokenizer)

    special = set(tokenizer.all_special_ids)
    for place, entries in enumerate(found):
        begun = [tokenizer.decode([*ids[:place], token]) for token in range(len(tokenizer))]
        can_go_on = [AS_A_REGEX.fullmatch(each, partial=True) is not None for each in begun]
        assert [token for token, can in enumerate(can_go_on) if can and token not in special] == entries


def test_tokens_that_cover_an_end_of_the_arguments_are_judged_with_what_stands_beside_them(
    grammars: JsonGrammars, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The tiny tokenizer spells these letter by letter, so the ends are moved instead of the tokens."""
    schema = json.dumps({"type": "object", "properties": {}, "additionalProperties": False})
    ids = ids_of(tokenizer, "={}.")

    found = allowed(grammars.masks(argument_grammar(schema, before="=", after="."), ids), tokenizer)

    assert [ids_of(tokenizer, "="), ids_of(tokenizer, "{")] == found[:2]
    assert set(ids_of(tokenizer, "}")) <= set(found[2])
    assert ids_of(tokenizer, ".") == found[3]


def test_the_same_call_has_the_same_masks(grammars: JsonGrammars, tokenizer: PreTrainedTokenizerFast) -> None:
    grammar = argument_grammar(json.dumps(SCHEMA), before=" ", after="")
    ids = ids_of(tokenizer, ' {"to": "fox"}')

    again = JsonGrammars(tokenizer).masks(grammar, ids)

    assert torch.equal(grammars.masks(grammar, ids), again)
    assert torch.equal(grammars.masks(grammar, ids), again)


def test_what_breaks_the_schema_is_not_accepted_to_its_end(
    grammars: JsonGrammars, tokenizer: PreTrainedTokenizerFast
) -> None:
    grammar = argument_grammar(json.dumps(SCHEMA), before="", after="")
    ids = ids_of(tokenizer, '{"to": "five"}')

    num_accepted = grammars.num_accepted(grammar, ids)

    assert '{"to": "f' == grammars.bytes_of(ids[:num_accepted]).decode()


@pytest.mark.parametrize(
    "schema, reason",
    [
        ({"type": "object", "properties": {"a": {"not": {}}}}, 'Unimplemented keys: ["not"]'),
        ({"type": "objekt"}, "Invalid type: objekt"),
        ({"$ref": "#/nowhere"}, "Pointer '/nowhere' does not exist"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}, "regex parse error:"),
    ],
)
def test_a_schema_that_cannot_be_compiled_says_why(schema: dict[str, Any], reason: str) -> None:
    assert reason == problem_with_schema(json.dumps(schema))


def test_a_schema_that_can_be_compiled_has_no_problem() -> None:
    assert problem_with_schema(json.dumps(SCHEMA)) is None


def test_a_tokenizer_that_the_engine_cannot_read_is_a_mismatch(tokenizer: PreTrainedTokenizerFast) -> None:
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    words["model"] = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}
    words["added_tokens"] = []
    words |= {"pre_tokenizer": {"type": "Whitespace"}, "decoder": None, "post_processor": None}
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(words))

    with pytest.raises(ModelMismatch, match="llguidance cannot read the tokenizer"):
        JsonGrammars(tokenizer)
