"""Values of the generated tasks, and how people say them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random
from typing import Any, Generic, TypeVar

__all__ = ["KINDS", "Kind"]

ValueT = TypeVar("ValueT")

_CITIES = (
    *("Amsterdam", "Athens", "Bergen", "Berlin", "Bogota", "Boston", "Cairo", "Chicago", "Cork", "Dakar", "Delhi"),
    *("Denver", "Dublin", "Geneva", "Hanoi", "Havana", "Helsinki", "Kyoto", "Lima", "Lisbon", "London", "Lyon"),
    *("Madrid", "Malmo", "Manila", "Nairobi", "Naples", "Osaka", "Oslo", "Paris", "Porto", "Prague", "Quito"),
    *("Riga", "Rome", "Seoul", "Sofia", "Tallinn", "Tokyo", "Toronto", "Tunis", "Turin", "Vienna", "Zurich"),
)
_PEOPLE = (
    *("Aisha", "Anna", "Ben", "Carla", "Chen", "David", "Elif", "Emma", "Farid", "Greta", "Hugo", "Ines", "Jonas"),
    *("Kofi", "Lena", "Marco", "Mia", "Nadia", "Omar", "Petra", "Quinn", "Rosa", "Samir", "Tara", "Viktor", "Yuki"),
)
_STREETS = ("Elm Street", "Harbour Road", "High Street", "Mill Lane", "Oak Avenue", "Park Row", "Station Road")
_THINGS = (
    *("batteries", "candles", "chairs", "cups", "desks", "lamps"),
    *("notebooks", "pens", "plants", "rugs", "towels"),
)
_TITLES = (
    *("budget review", "design meeting", "dentist", "lunch", "piano lesson", "planning"),
    *("team call", "yoga class"),
)
_SONGS = ("Blue Train", "Clair de Lune", "Harvest Moon", "Night Drive", "Paper Boats", "River Song", "Winter Light")
_DISHES = ("curry", "dumplings", "falafel", "noodles", "paella", "pizza", "ramen", "salad", "sushi", "tacos")
_NOTES = ("call me first", "gate code 4711", "leave it at the door", "no nuts please", "ring twice", "window seat")
_ROOMS = ("bathroom", "bedroom", "garage", "hallway", "kitchen", "living room", "office")
_COMPANIES = ("Acorn Foods", "Bluewater", "Cobalt Labs", "Delta Paper", "Evergreen", "Foxglove", "Granite Steel")
_SKIES = ("clear sky", "fog in the morning", "heavy rain", "light snow", "scattered clouds", "strong wind")
_ALERTS = ("flood warning", "heat warning", "ice on the roads", "no warning", "storm warning")
_STATES = ("confirmed", "delayed", "on its way", "ready for pickup", "waiting for payment")
_FIRST_DAY = date(2026, 1, 1)
_TEXT = {"type": "string"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[ValueT]):
    """One kind of value."""

    schema: Mapping[str, object]
    draw: Callable[[Random], ValueT]
    say: Callable[[ValueT, Random], str] = lambda value, rng: str(value)
    """How a person says it; not always as it is written."""
    clause: str = "({})"
    """What a request that mentions it in passing adds."""


def _one_of(values: tuple[str, ...], clause: str = "({})") -> Kind[str]:
    return Kind(schema=_TEXT, draw=lambda rng: rng.choice(values), clause=clause)


def _enum(wordings: Mapping[str, tuple[str, ...]], clause: str) -> Kind[str]:
    """An enumeration, each value with what people say for it."""
    return Kind(
        schema={"type": "string", "enum": list(wordings)},
        draw=lambda rng: rng.choice(list(wordings)),
        say=lambda value, rng: rng.choice(wordings[value]),
        clause=clause,
    )


def _integer(low: int, high: int, clause: str = "({})", **limits: int) -> Kind[int]:
    return Kind(schema={"type": "integer", **limits}, draw=lambda rng: rng.randint(low, high), clause=clause)


def _amount(low: int, high: int) -> Kind[float]:
    return Kind(schema={"type": "number"}, draw=lambda rng: round(rng.uniform(low, high), rng.choice((0, 1, 2))))


def _code(letters: str, digits: int) -> Kind[str]:
    return Kind(
        schema={"type": "string", "pattern": f"^{letters}"},
        draw=lambda rng: f"{letters}{rng.randrange(10**digits):0{digits}}",
    )


def _object(fields: Mapping[str, Kind[Any]], wording: str) -> Kind[dict[str, Any]]:
    return Kind(
        schema={
            "type": "object",
            "properties": {name: kind.schema for name, kind in fields.items()},
            "required": list(fields),
        },
        draw=lambda rng: {name: kind.draw(rng) for name, kind in fields.items()},
        say=lambda value, rng: wording.format(**{name: kind.say(value[name], rng) for name, kind in fields.items()}),
    )


def _list_of(kind: Kind[ValueT], most: int, clause: str = "({})") -> Kind[list[ValueT]]:
    def draw(rng: Random) -> list[ValueT]:
        distinct: list[ValueT] = []
        for _ in range(rng.randint(1, most)):
            value = kind.draw(rng)
            distinct += [value] if value not in distinct else []
        return distinct

    def say(values: list[ValueT], rng: Random) -> str:
        wordings = [kind.say(value, rng) for value in values]
        return wordings[0] if len(wordings) == 1 else f"{', '.join(wordings[:-1])} and {wordings[-1]}"

    return Kind(schema={"type": "array", "items": kind.schema}, draw=draw, say=say, clause=clause)


def _say_day(value: str, rng: Random) -> str:
    day = date.fromisoformat(value)
    return rng.choice((value, f"{day.day} {day:%B}", f"{day:%B} {day.day}"))


def _say_time(value: str, rng: Random) -> str:
    hour, minute = map(int, value.split(":"))
    half = "am" if hour < 12 else "pm"
    return rng.choice((value, f"{(hour - 1) % 12 + 1}{f':{minute:02}' if minute else ''} {half}"))


_DAY = Kind(
    schema={"type": "string", "format": "date"},
    draw=lambda rng: str(_FIRST_DAY + timedelta(days=rng.randrange(365))),
    say=_say_day,
    clause="on {}",
)
_TIME = Kind(
    schema={"type": "string", "pattern": "^[0-9]+:[0-9]+$"},
    draw=lambda rng: f"{rng.randint(7, 22):02}:{rng.choice((0, 15, 30, 45)):02}",
    say=_say_time,
    clause="at {}",
)
_CITY = _one_of(_CITIES, "in {}")
_ADDRESS = _object(
    {"street": _one_of(_STREETS), "number": _integer(1, 99), "city": _CITY}, "{street} {number}, {city}"
)
_ITEM = _object({"product": _one_of(_THINGS), "quantity": _integer(2, 9)}, "{quantity} {product}")

KINDS: dict[str, Kind[Any]] = {
    "address": _ADDRESS,
    "alert": _one_of(_ALERTS),
    "amount": _amount(5, 900),
    "artist": _one_of(_PEOPLE, "by {}"),
    "brightness": _integer(5, 100, maximum=100),
    "cabin": _enum(
        {
            "economy": ("economy", "the cheapest class"),
            "business": ("business", "business class"),
            "first": ("first",),
        },
        "in {}",
    ),
    "city": _CITY,
    "color": _enum({"warm": ("warm light",), "cool": ("cool light",), "red": ("red light",)}, "with {}"),
    "company": _one_of(_COMPANIES),
    "count": _integer(1, 12, "for {} people"),
    "currency": _enum(
        {"USD": ("dollars", "USD"), "EUR": ("euros", "EUR"), "JPY": ("yen", "JPY")},
        "in {}",
    ),
    "day": _DAY,
    "days": _integer(2, 14, "for {} days"),
    "degrees": _integer(-15, 38),
    "dish": _one_of(_DISHES),
    "flight": _code("HF", 3),
    "items": _list_of(_ITEM, 3),
    "minutes": _integer(5, 120, "for {} minutes"),
    "nights": _integer(1, 14, "for {} nights"),
    "note": _one_of(_NOTES, 'with the note "{}"'),
    "order": _code("A-", 5),
    "people": _list_of(_one_of(_PEOPLE), 3, "together with {}"),
    "percent": _integer(1, 99),
    "person": _one_of(_PEOPLE),
    "priority": _enum(
        {"low": ("low priority", "no hurry"), "normal": ("normal priority",), "high": ("high priority", "urgent")},
        "({})",
    ),
    "repeat": _enum(
        {"daily": ("every day", "daily"), "weekly": ("every week", "weekly"), "monthly": ("every month", "monthly")},
        "{}",
    ),
    "room": _one_of(_ROOMS),
    "sky": _one_of(_SKIES),
    "song": _one_of(_SONGS),
    "state": _one_of(_STATES),
    "temperature": _amount(15, 26),
    "time": _TIME,
    "title": _one_of(_TITLES),
    "unit": _enum({"celsius": ("celsius", "C"), "fahrenheit": ("fahrenheit", "F")}, "in {}"),
    "way": _object({"from": _CITY, "to": _CITY}, "{from} to {to}"),
}
"""By name."""
