from __future__ import annotations

from typing import Any

import pytest

from crashproof.distillation.evaluation.call_scores import GeneratedCall, read_call, score_call

SCHEMAS: dict[str, dict[str, Any]] = {
    "book": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "guests": {"type": "integer"}, "extras": {"type": "array"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "book_table": {"type": "object"},
}
RIGHT: dict[str, Any] = {"city": "Oslo", "guests": 2, "extras": [{"name": "bed"}, "view"]}


def score(said: GeneratedCall | None) -> Any:
    return score_call(said, name="book", arguments=RIGHT, schemas=SCHEMAS)


@pytest.mark.parametrize(
    "text, expected",
    [
        ('<tool_call>\n{"name": "book", "arguments": {"city": "Oslo"}}\n</tool_call>', ("book", {"city": "Oslo"})),
        ('{"name": "book", "parameters": {"city": "Oslo"}}<|eot_id|>', ("book", {"city": "Oslo"})),
        ('Let me see {this}. {"name": "book", "arguments": {}} and {"name": "x", "arguments": {}}', ("book", {})),
        ('{"name": "book", "arguments": {"city": "Oslo"', None),
        ('{"name": "book", "arguments": "Oslo"}', None),
        ('{"name": "book", "arguments": "{\\"city\\": \\"Oslo\\"}"}', ("book", {"city": "Oslo"})),
        ('{"type": "function", "name": "book", "arguments": "[1]"}', None),
        ('{"name": 3, "arguments": {}}', None),
        ("{" * 5000, None),
        ("no call", None),
    ],
    ids=[
        "Hermes",
        "Llama",
        "text around",
        "cut off",
        "text as arguments",
        "JSON in text",
        "a list in text",
        "no name",
        "only braces",
        "no call",
    ],
)
def test_the_first_call_in_a_text_is_read(text: str, expected: tuple[str, dict[str, Any]] | None) -> None:
    said = read_call(text)

    assert expected == (None if said is None else (said.name, said.arguments))


@pytest.mark.parametrize(
    "text, expected",
    [
        ('<function=book>{"city": "Oslo"}</function>', ("book", {"city": "Oslo"})),
        ('<function=book_table>{"city": "Oslo"}</function>', ("book_table", {"city": "Oslo"})),
        ("book is wrong, so book_table\n```json\n{}\n```", ("book_table", {})),
        ('book {} {"name": "book_table", "arguments": {}}', ("book_table", {})),
        ('<function=fly>{"city": "Oslo"}</function>', None),
        ('{"name": "book", "arguments": {"city": "Oslo"}', None),
        ('<function=book>{"city": "Oslo"', None),
    ],
    ids=["tags", "a longer name", "the last name", "a whole call first", "not offered", "cut off", "cut off in tags"],
)
def test_an_offered_name_before_an_object_is_a_call(text: str, expected: tuple[str, dict[str, Any]] | None) -> None:
    said = read_call(text, SCHEMAS)

    assert expected == (None if said is None else (said.name, said.arguments))


def test_the_right_call_is_right_in_every_way() -> None:
    found = score(GeneratedCall(name="book", arguments={"extras": RIGHT["extras"], "guests": 2.0, "city": "Oslo"}))

    assert (True, True, True) == (found.is_valid, found.has_right_tool, found.is_exact)
    assert (4, 8) == (found.num_right_fields, found.num_fields)


@pytest.mark.parametrize(
    "said, is_valid, has_right_tool, fields",
    [
        (GeneratedCall(name="book", arguments={"city": "Oslo", "guests": 3}), True, True, (1, 6)),
        (GeneratedCall(name="book", arguments={"guests": 2}), False, True, (1, 5)),
        (GeneratedCall(name="book", arguments={"city": "Oslo", "guests": True}), False, True, (1, 6)),
        (GeneratedCall(name="book", arguments=RIGHT | {"pool": None}), False, True, (4, 9)),
        (GeneratedCall(name="book_table", arguments=RIGHT), True, False, (0, 8)),
        (GeneratedCall(name="fly", arguments=RIGHT), False, False, (0, 8)),
        (None, False, False, (0, 4)),
    ],
    ids=["wrong value", "missing field", "true for 1", "one field more", "near miss", "not offered", "no call"],
)
def test_each_way_to_be_wrong_costs_what_it_should(
    said: GeneratedCall | None, is_valid: bool, has_right_tool: bool, fields: tuple[int, int]
) -> None:
    found = score(said)

    assert (is_valid, has_right_tool, False) == (found.is_valid, found.has_right_tool, found.is_exact)
    assert fields == (found.num_right_fields, found.num_fields)
