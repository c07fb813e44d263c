"""The tools of the generated task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crashproof.distillation.tasks.values import KINDS

__all__ = ["TOOLS", "ResultShape", "TaskTool"]

ResultShape = str | list["ResultShape"] | Mapping[str, "ResultShape"]
"""The name of a kind, or an array (of one shape) or an object of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTool:
    """A tool, how people request it, and what it returns."""

    domain: str
    name: str
    description: str
    required: Mapping[str, str]
    """The kind of each required parameter."""
    optional: Mapping[str, str]
    requests: tuple[str, ...]
    """Templates with a placeholder for each required parameter."""
    result: ResultShape
    answers: tuple[str, ...]
    """Templates over the parameters and the values of the result."""

    def function(self) -> dict[str, object]:
        """The `function` of the tool definition that is offered."""
        kinds = {**self.required, **self.optional}
        return {
            "name": self.name,
            "description": self.description,
            "parameters": {
                "type": "object",
                "properties": {name: KINDS[kind].schema for name, kind in kinds.items()},
                "required": list(self.required),
                "additionalProperties": False,
            },
        }


def _tool(
    signature: str, description: str, *, requests: tuple[str, ...], result: ResultShape, answers: tuple[str, ...]
) -> TaskTool:
    """A tool from `domain.name(parameter, parameter: kind, optional?)`."""
    domain, _, function = signature.removesuffix(")").partition(".")
    name, _, parameters = function.partition("(")
    kinds = _kinds(parameters)
    return TaskTool(
        domain=domain,
        name=name,
        description=description,
        required={name: kind for name, kind in kinds.items() if not name.endswith("?")},
        optional={name[:-1]: kind for name, kind in kinds.items() if name.endswith("?")},
        requests=requests,
        result=result,
        answers=answers,
    )


def _kinds(fields: str) -> dict[str, str]:
    """The kind of each of `name: kind, name`; by default its name."""
    pairs = (field.partition(": ") for field in fields.split(", "))
    return {name: kind or name.removesuffix("?") for name, _, kind in pairs}


TOOLS: tuple[TaskTool, ...] = (
    _tool(
        "weather.get_weather(city, unit?)",
        "Weather of a city right now.",
        requests=("How is the weather in {city}", "Is it cold in {city} right now", "Tell me the weather in {city}"),
        result={"now": _kinds("sky, degrees")},
        answers=("{sky}, {degrees} degrees.", "In {city} it is {degrees} degrees with {sky}."),
    ),
    _tool(
        "weather.get_weather_forecast(city, days, unit?)",
        "Weather of a city on the coming days.",
        requests=(
            "What will the weather be like in {city} over the next {days} days",
            "I go to {city} for {days} days, what weather do I get",
            "Give me a forecast of {days} days for {city}",
        ),
        result={"forecast": _kinds("summary: sky, highest: degrees, lowest: degrees")},
        answers=("Expect {summary}, between {lowest} and {highest} degrees.", "{summary}, up to {highest} degrees."),
    ),
    _tool(
        "weather.get_weather_history(city, date: day, unit?)",
        "Weather of a city on a past day.",
        requests=("How was the weather in {city} on {date}", "Did it rain in {city} on {date}"),
        result={"records": [_kinds("sky, degrees")]},
        answers=("It had {degrees} degrees and {sky}.", "On that day: {sky}, {degrees} degrees."),
    ),
    _tool(
        "weather.get_weather_alerts(city, date?: day)",
        "Warnings of the weather service for a city.",
        requests=("Are there any weather warnings for {city}", "Is a storm coming to {city}", "Alerts for {city}"),
        result={"alerts": [_kinds("kind: alert, until: time")]},
        answers=("There is a {kind} until {until}.", "The service reports {kind}, valid until {until}."),
    ),
    _tool(
        "flights.search_flights(route: way, date: day, cabin?)",
        "Flights between two cities on a day.",
        requests=("Find flights from {route} on {date}", "Which planes go from {route} on {date}"),
        result={"flights": [_kinds("flight, departure: time, price: amount")]},
        answers=("{flight} leaves at {departure} and costs {price}.", "The best one is {flight} for {price}."),
    ),
    _tool(
        "flights.search_flights_cheapest(route: way, days)",
        "The cheapest day to fly between two cities in some days.",
        requests=(
            "When is it cheapest to fly from {route} in the next {days} days",
            "Cheapest day for {route}, {days} days",
        ),
        result={"best": _kinds("date: day, price: amount")},
        answers=("It is cheapest on {date}, for {price}.", "Fly on {date}: {price}."),
    ),
    _tool(
        "flights.book_flight(flight, passengers: people, cabin?, note?)",
        "Book seats on a flight.",
        requests=("Book flight {flight} for {passengers}", "Get seats on {flight} for {passengers}"),
        result={"booking": _kinds("code: order") | {"total": _kinds("amount, currency")}},
        answers=("Booked as {code} for {amount} {currency}.", "Done, the code is {code}."),
    ),
    _tool(
        "flights.cancel_flight(flight, note?)",
        "Cancel a booked flight.",
        requests=(
            "Cancel flight {flight}",
            "We do not fly with {flight} any more",
            "Please drop our seats on {flight}",
        ),
        result={"refund": _kinds("amount, currency")},
        answers=("It is cancelled; {amount} {currency} come back.", "You get {amount} {currency} back."),
    ),
    _tool(
        "flights.get_flight_status(flight, date?: day)",
        "Whether a flight is on time.",
        requests=("Is {flight} on time", "How late is flight {flight}", "What is the status of {flight}"),
        result={"status": _kinds("state, arrival: time")},
        answers=("{flight} is {state} and arrives at {arrival}.", "It is {state}."),
    ),
    _tool(
        "stays.find_hotel(city, arrival: day, nights, guests?: count)",
        "Hotels in a city with free rooms.",
        requests=(
            "Find a hotel in {city} from {arrival} for {nights} nights",
            "I need {nights} nights in {city} from {arrival}",
        ),
        result={"hotels": [_kinds("name: company, price: amount")]},
        answers=("{name} has a room for {price}.", "I found {name} at {price} a night."),
    ),
    _tool(
        "stays.find_restaurant(city, dish, guests?: count)",
        "Restaurants in a city that serve a dish.",
        requests=("Where can I eat {dish} in {city}", "Find a place for {dish} in {city}", "I want {dish} in {city}"),
        result={"restaurants": [_kinds("name: company, address")]},
        answers=("Try {name}.", "{name} serves it."),
    ),
    _tool(
        "stays.reserve_table(restaurant: company, date: day, time, guests: count, note?)",
        "Reserve a table at a restaurant.",
        requests=(
            "Reserve a table for {guests} at {restaurant} on {date} at {time}",
            "A table at {restaurant}, {date}, {time}, {guests} people",
        ),
        result={"reservation": _kinds("code: order, held_until: time")},
        answers=("Reserved as {code}, held until {held_until}.", "The table is yours: {code}."),
    ),
    _tool(
        "stays.reserve_taxi(pickup: address, time, passengers?: count, note?)",
        "Order a taxi to an address.",
        requests=("I need a taxi at {pickup} at {time}", "Send a cab to {pickup} for {time}"),
        result={"taxi": _kinds("driver: person, price: amount")},
        answers=("{driver} picks you up for {price}.", "Your driver is {driver}."),
    ),
    _tool(
        "calendar.create_event(title, date: day, time, guests?: people, duration?: minutes)",
        "Put one event into the calendar.",
        requests=("Put {title} into my calendar on {date} at {time}", "I have {title} on {date} at {time}, note it"),
        result={"event": _kinds("id: order, conflicts: count")},
        answers=("Saved as {id} with {conflicts} conflicts.", "It is in: {id}."),
    ),
    _tool(
        "calendar.create_event_series(title, start: day, repeat, duration?: minutes)",
        "Put a repeating event into the calendar.",
        requests=("Add {title} {repeat} from {start} on", "From {start} on I have {title} {repeat}"),
        result={"series": _kinds("id: order, events: count")},
        answers=("The series {id} has {events} events.", "{events} events were added."),
    ),
    _tool(
        "calendar.move_event(title, date: day, time)",
        "Move an event to another time.",
        requests=("Move {title} to {date} at {time}", "Could {title} be at {time} on {date} instead"),
        result={"event": _kinds("id: order, informed: people")},
        answers=("Moved, it is {id} now.", "{id} was moved."),
    ),
    _tool(
        "calendar.find_free_time(people, date: day, duration?: minutes)",
        "When people are all free on a day.",
        requests=("When are {people} free on {date}", "Find a slot on {date} for {people}"),
        result={"slots": [_kinds("from: time, room")]},
        answers=("They are free from {from} in the {room}.", "The first slot begins at {from}."),
    ),
    _tool(
        "calendar.set_reminder(text: title, time, date?: day, priority?)",
        "Remind the user of something.",
        requests=("Remind me of {text} at {time}", "Set a reminder for {text} at {time}"),
        result={"reminder": _kinds("id: order, in_minutes: minutes")},
        answers=("I will remind you in {in_minutes} minutes.", "Reminder {id} is set."),
    ),
    _tool(
        "shop.order_items(items, address, priority?, note?)",
        "Order products and send them to an address.",
        requests=("Order {items} to {address}", "Send {items} to {address}", "I need {items} delivered to {address}"),
        result={"order": _kinds("number: order") | {"total": _kinds("amount, currency")}},
        answers=("Order {number} costs {amount} {currency}.", "Ordered, {amount} {currency} in total."),
    ),
    _tool(
        "shop.order_food(dish, quantity: count, address, note?)",
        "Order a dish from a restaurant to an address.",
        requests=("Bring {quantity} times {dish} to {address}", "I want {dish} for {quantity} at {address}"),
        result={"order": _kinds("number: order, minutes")},
        answers=("{number} arrives in {minutes} minutes.", "It takes {minutes} minutes."),
    ),
    _tool(
        "shop.get_order_status(order)",
        "Where an order is.",
        requests=("Where is my order {order}", "Has {order} been sent yet", "Track order {order}"),
        result={"status": _kinds("state, expected: day")},
        answers=("It is {state}, expected on {expected}.", "Order {order} is {state}."),
    ),
    _tool(
        "shop.cancel_order(order, note?)",
        "Cancel an order that was not sent yet.",
        requests=("Cancel order {order}", "I do not want {order} any more", "Stop order {order}"),
        result={"refund": _kinds("amount, days")},
        answers=("{amount} come back within {days} days.", "Cancelled; you get {amount}."),
    ),
    _tool(
        "money.convert_currency(amount, source: currency, target: currency, date?: day)",
        "Convert an amount between currencies.",
        requests=("How much are {amount} {source} in {target}", "Convert {amount} {source} to {target}"),
        result={"converted": _kinds("value: amount, rate: temperature")},
        answers=("That is {value}.", "At a rate of {rate} it is {value}."),
    ),
    _tool(
        "money.get_exchange_rate(source: currency, target: currency, date?: day)",
        "The rate between two currencies.",
        requests=("What is the rate of {source} to {target}", "How does {source} stand against {target}"),
        result={"rate": _kinds("value: temperature, changed: percent")},
        answers=("The rate is {value}, changed by {changed} percent.", "It stands at {value}."),
    ),
    _tool(
        "money.get_stock_price(company, currency?)",
        "What a company's share costs.",
        requests=(
            "What does a share of {company} cost",
            "How is {company} doing on the market",
            "Price of {company}",
        ),
        result={"quote": _kinds("price: amount, change: percent")},
        answers=("{company} stands at {price}, a change of {change} percent.", "One share costs {price}."),
    ),
    _tool(
        "money.transfer_money(recipient: person, amount, currency, date?: day, note?)",
        "Send money to a person.",
        requests=("Send {amount} {currency} to {recipient}", "Pay {recipient} {amount} {currency}"),
        result={"transfer": _kinds("id: order, balance: amount")},
        answers=("Sent as {id}; {balance} are left.", "Done, your balance is {balance}."),
    ),
    _tool(
        "home.set_light(room, brightness, color?)",
        "Set the light of a room.",
        requests=("Set the light in the {room} to {brightness} percent", "Dim the {room} to {brightness}"),
        result={"light": _kinds("room, watts: percent")},
        answers=("The light uses {watts} watts now.", "Done, {watts} watts."),
    ),
    _tool(
        "home.set_light_timer(room, time, color?, repeat?)",
        "Switch the light of a room at a time.",
        requests=("Switch on the light in the {room} at {time}", "Light the {room} at {time}"),
        result={"timer": _kinds("id: order, in_minutes: minutes")},
        answers=("Timer {id} runs in {in_minutes} minutes.", "It happens in {in_minutes} minutes."),
    ),
    _tool(
        "home.set_thermostat(room, temperature, until?: time)",
        "Set the temperature of a room.",
        requests=("Make the {room} {temperature} degrees warm", "Heat the {room} to {temperature}"),
        result={"thermostat": _kinds("now: temperature, minutes")},
        answers=("It has {now} degrees now and needs {minutes} minutes.", "It takes {minutes} minutes."),
    ),
    _tool(
        "music.play_song(song, artist?, room?)",
        "Play one song.",
        requests=("Play {song}", "I want to hear {song}", "Put on {song}"),
        result={"playing": _kinds("song, minutes")},
        answers=("Now playing {song}.", "{song} takes {minutes} minutes."),
    ),
    _tool(
        "music.play_playlist(mood: title, minutes, room?)",
        "Play music for some time.",
        requests=("Play {minutes} minutes of music for {mood}", "Music for {mood}, {minutes} minutes"),
        result={"playlist": _kinds("first: song, songs: count")},
        answers=("It begins with {first}.", "{songs} songs, the first is {first}."),
    ),
    _tool(
        "music.find_concerts(city, date: day, artist?)",
        "Concerts in a city.",
        requests=("Which concerts are in {city} on {date}", "Any live music in {city} on {date}"),
        result={"concerts": [_kinds("artist: person, time, price: amount")]},
        answers=("{artist} plays at {time} for {price}.", "You can see {artist} at {time}."),
    ),
)
"""Grouped by domain; within a domain, names and descriptions are close to each other."""
