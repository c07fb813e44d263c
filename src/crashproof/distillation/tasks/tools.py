"""The tools of the generated task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crashproof.distillation.tasks.values import KINDS

__all__ = ["TOOLS", "TaskTool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTool:
    """A tool, how people ask for it, and what it gives."""

    domain: str
    name: str
    description: str
    required: Mapping[str, str]
    """The kind of each parameter."""
    optional: Mapping[str, str] = field(default_factory=dict)
    requests: tuple[str, ...]
    """With the required parameters in them."""
    result: Mapping[str, Any]
    """Kinds of values, nested as they come."""
    answers: tuple[str, ...]
    """With parameters and values of the result in them."""

    def function(self) -> dict[str, Any]:
        """What is offered."""
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


TOOLS: tuple[TaskTool, ...] = (
    TaskTool(
        domain="weather",
        name="get_weather",
        description="Weather of a city right now.",
        required={"city": "city"},
        optional={"unit": "unit"},
        requests=("How is the weather in {city}", "Is it cold in {city} right now", "Tell me the weather in {city}"),
        result={"now": {"sky": "sky", "degrees": "degrees"}},
        answers=("{sky}, {degrees} degrees.", "In {city} it is {degrees} degrees with {sky}."),
    ),
    TaskTool(
        domain="weather",
        name="get_weather_forecast",
        description="Weather of a city on the coming days.",
        required={"city": "city", "days": "days"},
        optional={"unit": "unit"},
        requests=(
            "What will the weather be like in {city} over the next {days} days",
            "I go to {city} for {days} days, what weather do I get",
            "Give me a forecast of {days} days for {city}",
        ),
        result={"forecast": {"summary": "sky", "highest": "degrees", "lowest": "degrees"}},
        answers=("Expect {summary}, between {lowest} and {highest} degrees.", "{summary}, up to {highest} degrees."),
    ),
    TaskTool(
        domain="weather",
        name="get_weather_history",
        description="Weather of a city on a past day.",
        required={"city": "city", "date": "day"},
        optional={"unit": "unit"},
        requests=("How was the weather in {city} on {date}", "Did it rain in {city} on {date}"),
        result={"records": [{"sky": "sky", "degrees": "degrees"}]},
        answers=("It had {degrees} degrees and {sky}.", "On that day: {sky}, {degrees} degrees."),
    ),
    TaskTool(
        domain="weather",
        name="get_weather_alerts",
        description="Warnings of the weather service for a city.",
        required={"city": "city"},
        optional={"date": "day"},
        requests=("Are there any weather warnings for {city}", "Is a storm coming to {city}", "Alerts for {city}"),
        result={"alerts": [{"kind": "alert", "until": "time"}]},
        answers=("There is a {kind} until {until}.", "The service reports {kind}, valid until {until}."),
    ),
    TaskTool(
        domain="flights",
        name="search_flights",
        description="Flights between two cities on a day.",
        required={"route": "way", "date": "day"},
        optional={"cabin": "cabin"},
        requests=("Find flights from {route} on {date}", "Which planes go from {route} on {date}"),
        result={"flights": [{"flight": "flight", "departure": "time", "price": "amount"}]},
        answers=("{flight} leaves at {departure} and costs {price}.", "The best one is {flight} for {price}."),
    ),
    TaskTool(
        domain="flights",
        name="search_flights_cheapest",
        description="The cheapest day to fly between two cities in some days.",
        required={"route": "way", "days": "days"},
        requests=(
            "When is it cheapest to fly from {route} in the next {days} days",
            "Cheapest day for {route}, {days} days",
        ),
        result={"best": {"date": "day", "price": "amount"}},
        answers=("It is cheapest on {date}, for {price}.", "Fly on {date}: {price}."),
    ),
    TaskTool(
        domain="flights",
        name="book_flight",
        description="Book seats on a flight.",
        required={"flight": "flight", "passengers": "people"},
        optional={"cabin": "cabin", "note": "note"},
        requests=("Book flight {flight} for {passengers}", "Get seats on {flight} for {passengers}"),
        result={"booking": {"code": "order", "total": {"amount": "amount", "currency": "currency"}}},
        answers=("Booked as {code} for {amount} {currency}.", "Done, the code is {code}."),
    ),
    TaskTool(
        domain="flights",
        name="cancel_flight",
        description="Cancel a booked flight.",
        required={"flight": "flight"},
        optional={"note": "note"},
        requests=(
            "Cancel flight {flight}",
            "We do not fly with {flight} any more",
            "Please drop our seats on {flight}",
        ),
        result={"refund": {"amount": "amount", "currency": "currency"}},
        answers=("It is cancelled; {amount} {currency} come back.", "You get {amount} {currency} back."),
    ),
    TaskTool(
        domain="flights",
        name="get_flight_status",
        description="Whether a flight is on time.",
        required={"flight": "flight"},
        optional={"date": "day"},
        requests=("Is {flight} on time", "How late is flight {flight}", "What is the status of {flight}"),
        result={"status": {"state": "state", "arrival": "time"}},
        answers=("{flight} is {state} and arrives at {arrival}.", "It is {state}."),
    ),
    TaskTool(
        domain="stays",
        name="find_hotel",
        description="Hotels in a city with free rooms.",
        required={"city": "city", "arrival": "day", "nights": "nights"},
        optional={"guests": "count"},
        requests=(
            "Find a hotel in {city} from {arrival} for {nights} nights",
            "I need {nights} nights in {city} from {arrival}",
        ),
        result={"hotels": [{"name": "company", "price": "amount"}]},
        answers=("{name} has a room for {price}.", "I found {name} at {price} a night."),
    ),
    TaskTool(
        domain="stays",
        name="find_restaurant",
        description="Restaurants in a city that serve a dish.",
        required={"city": "city", "dish": "dish"},
        optional={"guests": "count"},
        requests=("Where can I eat {dish} in {city}", "Find a place for {dish} in {city}", "I want {dish} in {city}"),
        result={"restaurants": [{"name": "company", "address": "address"}]},
        answers=("Try {name}.", "{name} serves it."),
    ),
    TaskTool(
        domain="stays",
        name="reserve_table",
        description="Reserve a table at a restaurant.",
        required={"restaurant": "company", "date": "day", "time": "time", "guests": "count"},
        optional={"note": "note"},
        requests=(
            "Reserve a table for {guests} at {restaurant} on {date} at {time}",
            "A table at {restaurant}, {date}, {time}, {guests} people",
        ),
        result={"reservation": {"code": "order", "held_until": "time"}},
        answers=("Reserved as {code}, held until {held_until}.", "The table is yours: {code}."),
    ),
    TaskTool(
        domain="stays",
        name="reserve_taxi",
        description="Order a taxi to an address.",
        required={"pickup": "address", "time": "time"},
        optional={"passengers": "count", "note": "note"},
        requests=("I need a taxi at {pickup} at {time}", "Send a cab to {pickup} for {time}"),
        result={"taxi": {"driver": "person", "price": "amount"}},
        answers=("{driver} picks you up for {price}.", "Your driver is {driver}."),
    ),
    TaskTool(
        domain="calendar",
        name="create_event",
        description="Put one event into the calendar.",
        required={"title": "title", "date": "day", "time": "time"},
        optional={"guests": "people", "duration": "minutes"},
        requests=("Put {title} into my calendar on {date} at {time}", "I have {title} on {date} at {time}, note it"),
        result={"event": {"id": "order", "conflicts": "count"}},
        answers=("Saved as {id} with {conflicts} conflicts.", "It is in: {id}."),
    ),
    TaskTool(
        domain="calendar",
        name="create_event_series",
        description="Put a repeating event into the calendar.",
        required={"title": "title", "start": "day", "repeat": "repeat"},
        optional={"duration": "minutes"},
        requests=("Add {title} {repeat} from {start} on", "From {start} on I have {title} {repeat}"),
        result={"series": {"id": "order", "events": "count"}},
        answers=("The series {id} has {events} events.", "{events} events were added."),
    ),
    TaskTool(
        domain="calendar",
        name="move_event",
        description="Move an event to another time.",
        required={"title": "title", "date": "day", "time": "time"},
        requests=("Move {title} to {date} at {time}", "Could {title} be at {time} on {date} instead"),
        result={"event": {"id": "order", "informed": "people"}},
        answers=("Moved, it is {id} now.", "{id} was moved."),
    ),
    TaskTool(
        domain="calendar",
        name="find_free_time",
        description="When people are all free on a day.",
        required={"people": "people", "date": "day"},
        optional={"duration": "minutes"},
        requests=("When are {people} free on {date}", "Find a slot on {date} for {people}"),
        result={"slots": [{"from": "time", "room": "room"}]},
        answers=("They are free from {from} in the {room}.", "The first slot begins at {from}."),
    ),
    TaskTool(
        domain="calendar",
        name="set_reminder",
        description="Remind the user of something.",
        required={"text": "title", "time": "time"},
        optional={"date": "day", "priority": "priority"},
        requests=("Remind me of {text} at {time}", "Set a reminder for {text} at {time}"),
        result={"reminder": {"id": "order", "in_minutes": "minutes"}},
        answers=("I will remind you in {in_minutes} minutes.", "Reminder {id} is set."),
    ),
    TaskTool(
        domain="shop",
        name="order_items",
        description="Order products and send them to an address.",
        required={"items": "items", "address": "address"},
        optional={"priority": "priority", "note": "note"},
        requests=("Order {items} to {address}", "Send {items} to {address}", "I need {items} delivered to {address}"),
        result={"order": {"number": "order", "total": {"amount": "amount", "currency": "currency"}}},
        answers=("Order {number} costs {amount} {currency}.", "Ordered, {amount} {currency} in total."),
    ),
    TaskTool(
        domain="shop",
        name="order_food",
        description="Order a dish from a restaurant to an address.",
        required={"dish": "dish", "quantity": "count", "address": "address"},
        optional={"note": "note"},
        requests=("Bring {quantity} times {dish} to {address}", "I want {dish} for {quantity} at {address}"),
        result={"order": {"number": "order", "minutes": "minutes"}},
        answers=("{number} arrives in {minutes} minutes.", "It takes {minutes} minutes."),
    ),
    TaskTool(
        domain="shop",
        name="get_order_status",
        description="Where an order is.",
        required={"order": "order"},
        requests=("Where is my order {order}", "Has {order} been sent yet", "Track order {order}"),
        result={"status": {"state": "state", "expected": "day"}},
        answers=("It is {state}, expected on {expected}.", "Order {order} is {state}."),
    ),
    TaskTool(
        domain="shop",
        name="cancel_order",
        description="Cancel an order that was not sent yet.",
        required={"order": "order"},
        optional={"note": "note"},
        requests=("Cancel order {order}", "I do not want {order} any more", "Stop order {order}"),
        result={"refund": {"amount": "amount", "days": "days"}},
        answers=("{amount} come back within {days} days.", "Cancelled; you get {amount}."),
    ),
    TaskTool(
        domain="money",
        name="convert_currency",
        description="Convert an amount between currencies.",
        required={"amount": "amount", "source": "currency", "target": "currency"},
        optional={"date": "day"},
        requests=("How much are {amount} {source} in {target}", "Convert {amount} {source} to {target}"),
        result={"converted": {"value": "amount", "rate": "temperature"}},
        answers=("That is {value}.", "At a rate of {rate} it is {value}."),
    ),
    TaskTool(
        domain="money",
        name="get_exchange_rate",
        description="The rate between two currencies.",
        required={"source": "currency", "target": "currency"},
        optional={"date": "day"},
        requests=("What is the rate of {source} to {target}", "How does {source} stand against {target}"),
        result={"rate": {"value": "temperature", "changed": "percent"}},
        answers=("The rate is {value}, changed by {changed} percent.", "It stands at {value}."),
    ),
    TaskTool(
        domain="money",
        name="get_stock_price",
        description="What a company's share costs.",
        required={"company": "company"},
        optional={"currency": "currency"},
        requests=(
            "What does a share of {company} cost",
            "How is {company} doing on the market",
            "Price of {company}",
        ),
        result={"quote": {"price": "amount", "change": "percent"}},
        answers=("{company} stands at {price}, a change of {change} percent.", "One share costs {price}."),
    ),
    TaskTool(
        domain="money",
        name="transfer_money",
        description="Send money to a person.",
        required={"recipient": "person", "amount": "amount", "currency": "currency"},
        optional={"date": "day", "note": "note"},
        requests=("Send {amount} {currency} to {recipient}", "Pay {recipient} {amount} {currency}"),
        result={"transfer": {"id": "order", "balance": "amount"}},
        answers=("Sent as {id}; {balance} are left.", "Done, your balance is {balance}."),
    ),
    TaskTool(
        domain="home",
        name="set_light",
        description="Set the light of a room.",
        required={"room": "room", "brightness": "brightness"},
        optional={"color": "color"},
        requests=("Set the light in the {room} to {brightness} percent", "Dim the {room} to {brightness}"),
        result={"light": {"room": "room", "watts": "percent"}},
        answers=("The light uses {watts} watts now.", "Done, {watts} watts."),
    ),
    TaskTool(
        domain="home",
        name="set_light_timer",
        description="Switch the light of a room at a time.",
        required={"room": "room", "time": "time"},
        optional={"color": "color", "repeat": "repeat"},
        requests=("Switch on the light in the {room} at {time}", "Light the {room} at {time}"),
        result={"timer": {"id": "order", "in_minutes": "minutes"}},
        answers=("Timer {id} runs in {in_minutes} minutes.", "It happens in {in_minutes} minutes."),
    ),
    TaskTool(
        domain="home",
        name="set_thermostat",
        description="Set the temperature of a room.",
        required={"room": "room", "temperature": "temperature"},
        optional={"until": "time"},
        requests=("Make the {room} {temperature} degrees warm", "Heat the {room} to {temperature}"),
        result={"thermostat": {"now": "temperature", "minutes": "minutes"}},
        answers=("It has {now} degrees now and needs {minutes} minutes.", "It takes {minutes} minutes."),
    ),
    TaskTool(
        domain="music",
        name="play_song",
        description="Play one song.",
        required={"song": "song"},
        optional={"artist": "artist", "room": "room"},
        requests=("Play {song}", "I want to hear {song}", "Put on {song}"),
        result={"playing": {"song": "song", "minutes": "minutes"}},
        answers=("Now playing {song}.", "{song} takes {minutes} minutes."),
    ),
    TaskTool(
        domain="music",
        name="play_playlist",
        description="Play music for some time.",
        required={"mood": "title", "minutes": "minutes"},
        optional={"room": "room"},
        requests=("Play {minutes} minutes of music for {mood}", "Music for {mood}, {minutes} minutes"),
        result={"playlist": {"first": "song", "songs": "count"}},
        answers=("It begins with {first}.", "{songs} songs, the first is {first}."),
    ),
    TaskTool(
        domain="music",
        name="find_concerts",
        description="Concerts in a city.",
        required={"city": "city", "date": "day"},
        optional={"artist": "artist"},
        requests=("Which concerts are in {city} on {date}", "Any live music in {city} on {date}"),
        result={"concerts": [{"artist": "person", "time": "time", "price": "amount"}]},
        answers=("{artist} plays at {time} for {price}.", "You can see {artist} at {time}."),
    ),
)
"""In several domains, some of them named or described nearly alike."""
