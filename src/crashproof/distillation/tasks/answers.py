"""A generated task of answering from records."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from crashproof.distillation.data.answer_data import AnswerSource
from crashproof.distillation.tasks.values import KINDS

__all__ = ["generated_answers"]

_FEWEST_RECORDS, _MOST_RECORDS = 3, 4
_SHARE_WITH_REJECTED, _SHARE_WITH_QUALITY = 0.5, 0.2
_LOW_QUALITIES = (0.0, 0.1, 0.25)
_QUALITY_OF_PARTIAL = 0.5

_Record = dict[str, str | int]
_Message = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """One attribute of the records of a topic."""

    name: str
    kind: str | tuple[int, int]
    """A kind of `tasks.values`, or the range of an integer."""
    title: str
    """What a question calls it."""
    phrase: str
    """What an answer says; `{}` is the value."""

    def draw(self, rng: Random) -> str | int:
        value: str | int = KINDS[self.kind].draw(rng) if isinstance(self.kind, str) else rng.randint(*self.kind)
        return value

    def say(self, record: _Record) -> str:
        return self.phrase.format(record[self.name])

    def number(self, record: _Record) -> int:
        return int(record[self.name])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Topic:
    """What the records of one exercise are about."""

    name: str
    key: str
    """The kind that identifies a record."""
    texts: tuple[_Field, ...]
    numbers: tuple[_Field, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The records of one exercise."""

    topic: _Topic
    records: list[_Record]

    def fields(self) -> list[_Field]:
        return [field for field in (*self.topic.texts, *self.topic.numbers) if field.name in self.records[0]]

    def key(self, record: _Record) -> str:
        return str(record[self.topic.key])

    def others(self, record: _Record) -> list[_Record]:
        return [each for each in self.records if each is not record]

    def is_unique(self, field: _Field, record: _Record) -> bool:
        return all(each[field.name] != record[field.name] for each in self.others(record))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exercise:
    """A question about some records, with its answer."""

    question: str
    answer: str
    """A template with a placeholder for each of `values`."""
    values: Mapping[str, object]
    mistakes: Mapping[str, list[str] | list[int]]
    """What could replace a value by mistake."""
    partial: str
    """An answer that leaves something out."""


def _text(name: str, kind: str = "", phrase: str = "", title: str = "") -> _Field:
    title = title or f"the {name}"
    return _Field(name=name, kind=kind or name, title=title, phrase=phrase or f"{title} {{}}")


def _number(name: str, kind: str | tuple[int, int], phrase: str = "", title: str = "") -> _Field:
    return _Field(name=name, kind=kind, title=title or f"the {name}", phrase=phrase or f"{{}} {name}")


_TOPICS = (
    _Topic(
        name="weather",
        key="city",
        texts=(_text("sky", phrase="{}"), _text("alert")),
        numbers=(
            _number("degrees", (-9, 38), title="the temperature"),
            _number("humidity", (20, 99), "{} percent humidity"),
        ),
    ),
    _Topic(
        name="staff",
        key="person",
        texts=(_text("city", phrase="a desk in {}"), _text("company", title="the client")),
        numbers=(_number("hours", (4, 60)), _number("projects", (1, 12))),
    ),
    _Topic(
        name="menu",
        key="dish",
        texts=(_text("cook", "person"), _text("place", "company", "its place at {}", title="the restaurant")),
        numbers=(
            _number("price", (5, 40), "a price of {} euros"),
            _number("minutes", (5, 60), "{} minutes of waiting", title="the waiting time"),
        ),
    ),
    _Topic(
        name="orders",
        key="order",
        texts=(_text("state"), _text("buyer", "person")),
        numbers=(
            _number("items", (1, 30), title="the number of items"),
            _number("days", (1, 20), "{} days to go", title="the days to go"),
        ),
    ),
    _Topic(
        name="rooms",
        key="room",
        texts=(_text("light", "color", "{} light"), _text("music", "song", "the song {}")),
        numbers=(
            _number("brightness", "brightness", "{} percent brightness"),
            _number("warmth", (12, 29), "{} degrees", title="the temperature"),
        ),
    ),
)


def generated_answers(num_samples: int, *, seed: int) -> AnswerSource:
    """Questions about a few records, each with its answer.

    The records are the result of a tool's call, a table in the question, or lines before it. Values are copied from
    two fields of one record, or found by another value; numbers are compared, subtracted or added up. Each wording
    of a question has exactly one wording of its answer. Half of the lines have a rejected answer, with a value of
    another record or a wrong number; a fifth have a quality: 1 for the full answer, less for a partial or wrong one.

    Args:
        num_samples: Number of lines.
        seed: Seed of the generator; the same seed gives the same lines.
    """
    rng = Random(seed)  # noqa: S311 - it makes exercises, not secrets
    return AnswerSource.generated([_sample(number, rng) for number in range(1, num_samples + 1)])


def _sample(number: int, rng: Random) -> dict[str, object]:
    table = _draw_table(rng)
    exercise = rng.choice(_EXERCISES)(table, rng)
    answer, judgement = _judged_answer(exercise, rng)
    before = rng.choice((_after_a_call, _with_a_table, _after_lines))(table, exercise.question, number)
    if isinstance(before, str):
        return {"prompt": before, "answer": answer, **judgement, "line": number}
    return {"messages": [*before, {"role": "assistant", "content": answer}], **judgement, "line": number}


def _draw_table(rng: Random) -> _Table:
    topic = rng.choice(_TOPICS)
    num_records = rng.randint(_FEWEST_RECORDS, _MOST_RECORDS)
    keys: dict[str, None] = {}
    while len(keys) < num_records:
        keys[KINDS[topic.key].draw(rng)] = None
    fields = [rng.choice(topic.texts), *topic.numbers]
    records = [{topic.key: key, **{field.name: field.draw(rng) for field in fields}} for key in keys]
    return _Table(topic=topic, records=records)


def _judged_answer(exercise: _Exercise, rng: Random) -> tuple[str, dict[str, object]]:
    """The answer to learn, with what the line says about it: a rejected answer, a quality or nothing."""
    right, wrong = exercise.answer.format(**exercise.values), _wrong_answer(exercise, rng)
    lot = rng.random()
    if lot < _SHARE_WITH_REJECTED:
        return right, {"rejected": wrong}
    if lot >= _SHARE_WITH_REJECTED + _SHARE_WITH_QUALITY:
        return right, {}
    low_quality = rng.choice(_LOW_QUALITIES)
    answer, quality = rng.choice(((right, 1.0), (exercise.partial, _QUALITY_OF_PARTIAL), (wrong, low_quality)))
    return answer, {"quality": quality}


def _wrong_answer(exercise: _Exercise, rng: Random) -> str:
    """The answer with one value replaced by a mistake."""
    right = exercise.answer.format(**exercise.values)
    answers = [
        exercise.answer.format(**{**exercise.values, name: mistake})
        for name, mistakes in exercise.mistakes.items()
        for mistake in mistakes
    ]
    return rng.choice([answer for answer in answers if answer != right])


def _two_fields(table: _Table, rng: Random) -> _Exercise:
    record = rng.choice(table.records)
    first, second = rng.sample(table.fields(), 2)
    key, others = table.key(record), table.others(record)
    wordings = ("What are {} and {} of {}?", "Tell me {} and {} of {}.", "I need {} and also {}, both of {}.")
    return _Exercise(
        question=rng.choice(wordings).format(first.title, second.title, key),
        answer="{key} has {a} and {b}.",
        values={"key": key, "a": first.say(record), "b": second.say(record)},
        mistakes={
            "a": [first.say(each) for each in others],
            "b": [second.say(each) for each in others],
            "key": [table.key(each) for each in others],
        },
        partial=f"{key} has {first.say(record)}.",
    )


def _found_by_value(table: _Table, rng: Random) -> _Exercise:
    record = rng.choice(table.records)
    given, wanted = rng.sample(table.fields(), 2)
    if not table.is_unique(given, record):
        # There would be two right answers.
        return _two_fields(table, rng)
    key, others = table.key(record), table.others(record)
    wordings = ("Which one has {}, and what is {} there?", "{}: which one is it, and what is {}?")
    return _Exercise(
        question=rng.choice(wordings).format(given.say(record), wanted.title),
        answer="It is {key}, with {b}.",
        values={"key": key, "b": wanted.say(record)},
        mistakes={"key": [table.key(each) for each in others], "b": [wanted.say(each) for each in others]},
        partial=f"It is {key}.",
    )


def _extreme(table: _Table, rng: Random) -> _Exercise:
    field = rng.choice(table.topic.numbers)
    word, choose = rng.choice((("highest", max), ("lowest", min)))
    record = choose(table.records, key=field.number)
    if not table.is_unique(field, record):
        return _two_fields(table, rng)
    key, others = table.key(record), table.others(record)
    wordings = ("Which one has {} that is the {}?", "Of all of them, where is {} the {}?")
    return _Exercise(
        question=rng.choice(wordings).format(field.title, word),
        answer=f"{field.title.capitalize()} is {word} for {{key}}: {{value}}.",
        values={"key": key, "value": field.say(record)},
        mistakes={"key": [table.key(each) for each in others], "value": [field.say(each) for each in others]},
        partial=f"It is {key}.",
    )


def _difference(table: _Table, rng: Random) -> _Exercise:
    field = rng.choice(table.topic.numbers)
    first, second = rng.sample(table.records, 2)
    a, b = field.number(first), field.number(second)
    keys = {"first": table.key(first), "second": table.key(second)}
    wordings = ("How far apart is {} of {first} and {second}?", "Compare {} of {first} and {second}.")
    return _Exercise(
        question=rng.choice(wordings).format(field.title, **keys),
        answer="{first} has {a} and {second} has {b}, a difference of {d}.",
        values={**keys, "a": field.say(first), "b": field.say(second), "d": abs(a - b)},
        mistakes={
            "a": [field.phrase.format(number) for number in _near(a)],
            "b": [field.phrase.format(number) for number in _near(b)],
            "d": _near(abs(a - b)),
        },
        partial=f"The difference is {abs(a - b)}.",
    )


def _total(table: _Table, rng: Random) -> _Exercise:
    field = rng.choice(table.topic.numbers)
    total = sum(map(field.number, table.records))
    *keys, last_key = map(table.key, table.records)
    wordings = ("Add up {} of all of them.", "What is {} in total?")
    return _Exercise(
        question=rng.choice(wordings).format(field.title),
        answer="{total} in total, over {keys}.",
        values={"total": total, "keys": f"{', '.join(keys)} and {last_key}"},
        mistakes={"total": _near(total), "keys": [", ".join(keys)]},
        partial=f"{total} in total.",
    )


_EXERCISES: tuple[Callable[[_Table, Random], _Exercise], ...] = (
    _two_fields,
    _two_fields,
    _found_by_value,
    _extreme,
    _difference,
    _total,
)


def _near(number: int) -> list[int]:
    return [number + 1, number + 10, *([number - 1] if number > 1 else [])]


def _after_a_call(table: _Table, question: str, number: int) -> list[_Message]:
    call_id = f"call_{number}"
    function = {"name": f"get_{table.topic.name}", "arguments": "{}"}
    return [
        {"role": "user", "content": question},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call_id, "content": json.dumps(table.records)},
    ]


def _with_a_table(table: _Table, question: str, number: int) -> list[_Message]:
    header = " | ".join(table.records[0])
    rows = [" | ".join(map(str, record.values())) for record in table.records]
    return [{"role": "user", "content": "\n".join([header, *rows, "", question])}]


def _after_lines(table: _Table, question: str, number: int) -> str:
    lines = ["- " + ", ".join(f"{name}: {value}" for name, value in record.items()) for record in table.records]
    return "\n".join([table.topic.name.capitalize(), *lines, f"Question: {question}", "Answer:\n"])
