"""A task of answering from records, generated from a seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from crashproof.distillation.data.answer_data import AnswerSource
from crashproof.distillation.tasks.values import KINDS

__all__ = ["generated_answers"]

_FEWEST_RECORDS, _MOST_RECORDS = 3, 4
_SHARE_WITH_REJECTED, _SHARE_WITH_QUALITY = 0.5, 0.2
_LOW_QUALITIES = (0.0, 0.1, 0.25)
_HALF_AN_ANSWER = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """One thing that is known of each record of a topic."""

    name: str
    kind: str | tuple[int, int]
    """A kind of `task_values`, or the range of a whole number."""
    asked: str
    said: str
    """With the value in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Topic:
    """What the records of one exercise are about."""

    name: str
    key: str
    """The kind that tells the records apart."""
    texts: tuple[_Field, ...]
    numbers: tuple[_Field, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exercise:
    """A question about some records, with its answer."""

    question: str
    answer: str
    """With the names of its values in braces."""
    values: Mapping[str, Any]
    wrong: Mapping[str, list[Any]]
    """What could stand in the place of a value by mistake."""
    half: str
    """An answer that leaves something out."""


_TOPICS = (
    _Topic(
        name="weather",
        key="city",
        texts=(
            _Field(name="sky", kind="sky", asked="the sky", said="{}"),
            _Field(name="alert", kind="alert", asked="the alert", said="the alert {}"),
        ),
        numbers=(
            _Field(name="degrees", kind=(-9, 38), asked="the temperature", said="{} degrees"),
            _Field(name="humidity", kind=(20, 99), asked="the humidity", said="{} percent humidity"),
        ),
    ),
    _Topic(
        name="staff",
        key="person",
        texts=(
            _Field(name="city", kind="city", asked="the city", said="a desk in {}"),
            _Field(name="company", kind="company", asked="the client", said="the client {}"),
        ),
        numbers=(
            _Field(name="hours", kind=(4, 60), asked="the hours", said="{} hours"),
            _Field(name="projects", kind=(1, 12), asked="the projects", said="{} projects"),
        ),
    ),
    _Topic(
        name="menu",
        key="dish",
        texts=(
            _Field(name="cook", kind="person", asked="the cook", said="the cook {}"),
            _Field(name="place", kind="company", asked="the restaurant", said="its place at {}"),
        ),
        numbers=(
            _Field(name="price", kind=(5, 40), asked="the price", said="a price of {} euros"),
            _Field(name="minutes", kind=(5, 60), asked="the waiting time", said="{} minutes of waiting"),
        ),
    ),
    _Topic(
        name="orders",
        key="order",
        texts=(
            _Field(name="state", kind="state", asked="the state", said="the state {}"),
            _Field(name="buyer", kind="person", asked="the buyer", said="the buyer {}"),
        ),
        numbers=(
            _Field(name="items", kind=(1, 30), asked="the number of items", said="{} items"),
            _Field(name="days", kind=(1, 20), asked="the days to go", said="{} days to go"),
        ),
    ),
    _Topic(
        name="rooms",
        key="room",
        texts=(
            _Field(name="light", kind="color", asked="the light", said="{} light"),
            _Field(name="music", kind="song", asked="the music", said="the song {}"),
        ),
        numbers=(
            _Field(name="brightness", kind="brightness", asked="the brightness", said="{} percent brightness"),
            _Field(name="warmth", kind=(12, 29), asked="the temperature", said="{} degrees"),
        ),
    ),
)


def generated_answers(num_samples: int, *, seed: int) -> AnswerSource:
    """Questions about a few records, each with its answer.

    The records are the result of a tool's call, a table in the question, or lines before it. Values are copied from
    two fields of one record, or found by another value; numbers are compared, subtracted or added up. One wording of
    a question has one wording of its answer. Half of the lines have a rejected answer, with a value of another record
    or a number that is off; a fifth have a quality: 1 for the whole answer, less for half of it or a wrong one.

    Args:
        num_samples: Lines.
        seed: The same one makes the same lines.
    """
    rng = Random(seed)  # noqa: S311 - it makes exercises, not secrets
    samples = [_sample(number, rng) for number in range(1, num_samples + 1)]
    digest = hashlib.sha256(json.dumps(samples).encode()).hexdigest()
    return AnswerSource(samples=samples, sha256=digest, path=None)


def _sample(number: int, rng: Random) -> dict[str, Any]:
    topic = rng.choice(_TOPICS)
    records = _records(topic, rng)
    exercise = rng.choice(_EXERCISES)(topic, records, rng)
    right, wrong = exercise.answer.format(**exercise.values), _wrong(exercise, rng)
    lot = rng.random()
    judged: dict[str, Any] = {}
    if lot < _SHARE_WITH_REJECTED:
        answer, judged = right, {"rejected": wrong}
    elif lot < _SHARE_WITH_REJECTED + _SHARE_WITH_QUALITY:
        answer, quality = rng.choice(
            ((right, 1.0), (exercise.half, _HALF_AN_ANSWER), (wrong, rng.choice(_LOW_QUALITIES)))
        )
        judged = {"quality": quality}
    else:
        answer = right
    asked = rng.choice((_after_a_call, _with_a_table, _behind_lines))
    return asked(topic, records, exercise.question, answer, number) | judged | {"line": number}


def _records(topic: _Topic, rng: Random) -> list[dict[str, Any]]:
    num_records = rng.randint(_FEWEST_RECORDS, _MOST_RECORDS)
    keys: dict[Any, None] = {}
    while len(keys) < num_records:
        keys[KINDS[topic.key].draw(rng)] = None
    fields = [rng.choice(topic.texts), *topic.numbers]
    return [{topic.key: key, **{field.name: _drawn(field, rng) for field in fields}} for key in keys]


def _drawn(field: _Field, rng: Random) -> Any:
    return KINDS[field.kind].draw(rng) if isinstance(field.kind, str) else rng.randint(*field.kind)


def _wrong(exercise: _Exercise, rng: Random) -> str:
    """The answer with one value mistaken."""
    right = exercise.answer.format(**exercise.values)
    mistakes = [
        exercise.answer.format(**{**exercise.values, name: value})
        for name, others in exercise.wrong.items()
        for value in others
    ]
    return rng.choice([mistake for mistake in mistakes if mistake != right])


def _fields_of(topic: _Topic, records: list[dict[str, Any]]) -> list[_Field]:
    return [field for field in (*topic.texts, *topic.numbers) if field.name in records[0]]


def _off(number: int) -> list[int]:
    return [number + 1, number + 10, *([number - 1] if number > 1 else [])]


def _two_fields(topic: _Topic, records: list[dict[str, Any]], rng: Random) -> _Exercise:
    record = rng.choice(records)
    first, second = rng.sample(_fields_of(topic, records), 2)
    key = record[topic.key]
    wordings = (
        "What are {} and {} of {}?",
        "Tell me {} and {} of {}.",
        "I need {} and also {}, both of {}.",
    )
    others = [each for each in records if each is not record]
    said = {"a": first.said.format(record[first.name]), "b": second.said.format(record[second.name])}
    return _Exercise(
        question=rng.choice(wordings).format(first.asked, second.asked, key),
        answer="{key} has {a} and {b}.",
        values={"key": key, **said},
        wrong={
            "a": [first.said.format(each[first.name]) for each in others],
            "b": [second.said.format(each[second.name]) for each in others],
            "key": [each[topic.key] for each in others],
        },
        half=f"{key} has {said['a']}.",
    )


def _found_by_value(topic: _Topic, records: list[dict[str, Any]], rng: Random) -> _Exercise:
    record = rng.choice(records)
    given, wanted = rng.sample(_fields_of(topic, records), 2)
    others = [each for each in records if each is not record]
    if any(each[given.name] == record[given.name] for each in others):
        # There would be two right answers.
        return _two_fields(topic, records, rng)
    known = given.said.format(record[given.name])
    return _Exercise(
        question=rng.choice(
            ("Which one has {}, and what is {} there?", "{}: which one is it, and what is {}?")
        ).format(known, wanted.asked),
        answer="It is {key}, with {b}.",
        values={"key": record[topic.key], "b": wanted.said.format(record[wanted.name])},
        wrong={
            "key": [each[topic.key] for each in others],
            "b": [wanted.said.format(each[wanted.name]) for each in others],
        },
        half=f"It is {record[topic.key]}.",
    )


def _extreme(topic: _Topic, records: list[dict[str, Any]], rng: Random) -> _Exercise:
    field = rng.choice(topic.numbers)
    word, chosen = rng.choice((("highest", max), ("lowest", min)))
    record = chosen(records, key=lambda each: each[field.name])
    others = [each for each in records if each is not record]
    if any(each[field.name] == record[field.name] for each in others):
        return _two_fields(topic, records, rng)
    return _Exercise(
        question=rng.choice(("Which one has {} that is the {}?", "Of all of them, where is {} the {}?")).format(
            field.asked, word
        ),
        answer=f"{field.asked.capitalize()} is {word} for {{key}}: {field.said}.".replace("{}", "{value}"),
        values={"key": record[topic.key], "value": record[field.name]},
        wrong={
            "key": [each[topic.key] for each in others],
            "value": [each[field.name] for each in others],
        },
        half=f"It is {record[topic.key]}.",
    )


def _difference(topic: _Topic, records: list[dict[str, Any]], rng: Random) -> _Exercise:
    field = rng.choice(topic.numbers)
    first, second = rng.sample(records, 2)
    a, b = first[field.name], second[field.name]
    return _Exercise(
        question=rng.choice(("How far apart is {} of {} and {}?", "Compare {} of {} and {}.")).format(
            field.asked, first[topic.key], second[topic.key]
        ),
        answer="{first} has {a} and {second} has {b}, a difference of {d}.",
        values={
            "first": first[topic.key],
            "second": second[topic.key],
            "a": field.said.format(a),
            "b": field.said.format(b),
            "d": abs(a - b),
        },
        wrong={
            "a": [field.said.format(each) for each in _off(a)],
            "b": [field.said.format(each) for each in _off(b)],
            "d": _off(abs(a - b)),
        },
        half=f"The difference is {abs(a - b)}.",
    )


def _total(topic: _Topic, records: list[dict[str, Any]], rng: Random) -> _Exercise:
    field = rng.choice(topic.numbers)
    numbers = [record[field.name] for record in records]
    keys = [str(record[topic.key]) for record in records]
    listed = f"{', '.join(keys[:-1])} and {keys[-1]}"
    return _Exercise(
        question=rng.choice(("Add up {} of all of them.", "What is {} in total?")).format(field.asked),
        answer="{total} in total, over {listed}.",
        values={"total": sum(numbers), "listed": listed},
        wrong={"total": _off(sum(numbers)), "listed": [", ".join(keys[:-1])]},
        half=f"{sum(numbers)} in total.",
    )


_EXERCISES: tuple[Callable[[_Topic, list[dict[str, Any]], Random], _Exercise], ...] = (
    _two_fields,
    _two_fields,
    _found_by_value,
    _extreme,
    _difference,
    _total,
)


def _after_a_call(
    topic: _Topic, records: list[dict[str, Any]], question: str, answer: str, number: int
) -> dict[str, Any]:
    call = {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": f"get_{topic.name}", "arguments": "{}"},
    }
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": json.dumps(records)},
            {"role": "assistant", "content": answer},
        ]
    }


def _with_a_table(
    topic: _Topic, records: list[dict[str, Any]], question: str, answer: str, number: int
) -> dict[str, Any]:
    rows = [list(records[0]), *(list(record.values()) for record in records)]
    table = "\n".join(" | ".join(map(str, row)) for row in rows)
    return {
        "messages": [
            {"role": "user", "content": f"{table}\n\n{question}"},
            {"role": "assistant", "content": answer},
        ]
    }


def _behind_lines(
    topic: _Topic, records: list[dict[str, Any]], question: str, answer: str, number: int
) -> dict[str, Any]:
    lines = "\n".join("- " + ", ".join(f"{name}: {value}" for name, value in record.items()) for record in records)
    return {"prompt": f"{topic.name.capitalize()}\n{lines}\nQuestion: {question}\nAnswer:\n", "answer": answer}
