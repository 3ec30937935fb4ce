"""Function calling: eight small tools, single and parallel calls, and questions that need no tool.

The user's words carry every argument, so a call is right or wrong without a judge.
"""

import itertools
import random
from dataclasses import dataclass
from functools import cache

from facts import pool
from words import CITIES, DAYS, EVENTS, FOODS, NAMES, Row, conversation, generator

from hermes3.chat.prompts import to_json

# Argument -> its values; the type of the first one gives the JSON type.
VALUES = {
    "city": CITIES,
    "start": CITIES[:12],
    "end": CITIES[12:],
    "item": FOODS,
    "hour": range(1, 13),
    "event": EVENTS,
    "day": DAYS,
    "to": NAMES,
    "text": ("I am late", "see you soon", "call me back", "come home", "all is well", "dinner is ready"),
    "people": range(2, 10),
}


@dataclass(frozen=True)
class Tool:
    """A tool, the requests that need it ({argument} slots), the fields that it returns and the final reply."""

    name: str
    description: str
    arguments: tuple[str, ...]
    requests: tuple[str, ...]
    returns: dict[str, tuple[str | int, ...]]
    reply: str

    def schema(self) -> Row:
        """OpenAI function schema."""
        types = {name: "integer" if isinstance(VALUES[name][0], int) else "string" for name in self.arguments}
        properties = {name: {"type": kind} for name, kind in types.items()}
        parameters = {"type": "object", "properties": properties, "required": list(self.arguments)}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


TOOLS = (
    Tool(
        "get_weather",
        "Weather in a city",
        ("city",),
        ("What is the weather in {city}?", "How is the weather in {city}?", "Tell me the weather in {city}."),
        {"sky": ("sunny", "cloudy", "rainy", "windy"), "degrees": (8, 12, 16, 20, 24)},
        "In {city} it is {sky} with {degrees} degrees.",
    ),
    Tool(
        "get_time",
        "Time in a city",
        ("city",),
        ("What time is it in {city}?", "Tell me the time in {city}.", "I need the time in {city}."),
        {"time": ("6:00", "9:30", "12:00", "15:30", "21:00")},
        "In {city} it is {time}.",
    ),
    Tool(
        "get_price",
        "Price of an item",
        ("item",),
        ("How much is {item}?", "What is the price of {item}?", "Tell me the price of {item}."),
        {"price": (2, 3, 4, 5, 6)},
        "The price of {item} is {price} coins.",
    ),
    Tool(
        "set_alarm",
        "Set an alarm on a day",
        ("hour", "day"),
        ("Set an alarm for {hour} on {day}.", "Wake me at {hour} on {day}.", "I need an alarm at {hour} on {day}."),
        {"status": ("set",)},
        "The alarm is set for {hour} on {day}.",
    ),
    Tool(
        "add_event",
        "Add an event to the calendar",
        ("event", "day"),
        ("Add the {event} on {day}.", "Put the {event} on {day}, please.", "Plan the {event} for {day}."),
        {"status": ("added",)},
        "The {event} is added for {day}.",
    ),
    Tool(
        "send_message",
        "Send a message to a person",
        ("to", "text"),
        ("Send {to} the message: {text}.", "Write to {to}: {text}.", "Let {to} know: {text}."),
        {"status": ("sent",)},
        "The message to {to} is sent.",
    ),
    Tool(
        "book_table",
        "Book a table in a city",
        ("city", "people"),
        ("Book a table in {city} for {people}.", "I need a table in {city} for {people}.", "In {city}, seat {people}."),
        {"table": (1, 2, 3, 4, 5)},
        "Table {table} in {city} is booked for {people}.",
    ),
    Tool(
        "find_route",
        "Route between two cities",
        ("start", "end"),
        ("Find a route from {start} to {end}.", "How do I get from {start} to {end}?", "Go from {start} to {end}."),
        {"hours": (1, 2, 3, 4, 5)},
        "From {start} to {end} it takes {hours} hours.",
    ),
)
PAIRED = TOOLS[:3]  # one text argument: "Tolan and Brask" in its place asks for two calls

N_SINGLE, N_SINGLE_HELD_OUT = 20, 8  # per tool
N_PARALLEL, N_PARALLEL_HELD_OUT = 16, 5  # per paired tool; one more is held out for the first, which makes 80 rows
N_WITHOUT_CALL = 48
WITHOUT_NEED = "Call a tool only when the question needs one."

Request = tuple[Tool, str, list[Row]]  # tool, user's text, arguments of each call


def single_requests(tool: Tool) -> list[Request]:
    """Every request of one call."""
    rows = (dict(zip(tool.arguments, v, strict=True)) for v in itertools.product(*map(VALUES.get, tool.arguments)))
    return [(tool, text.format(**row), [row]) for row in rows for text in tool.requests]


def parallel_requests(tool: Tool) -> list[Request]:
    """Every request of two calls of one tool."""
    (argument,) = tool.arguments
    pairs = itertools.permutations(VALUES[argument], 2)
    return [
        (tool, text.format(**{argument: f"{left} and {right}"}), [{argument: left}, {argument: right}])
        for left, right in pairs
        for text in tool.requests
    ]


@cache
def split_requests(seed: int) -> tuple[list[Request], list[Request]]:
    """Requests for training and, none of them among those, held-out ones."""
    rng = generator(seed, "tool_calls/split")
    train, held_out = [], []
    for tool in TOOLS:
        sample = rng.sample(single_requests(tool), N_SINGLE + N_SINGLE_HELD_OUT)
        train += sample[:N_SINGLE]
        held_out += sample[N_SINGLE:]
    for i, tool in enumerate(PAIRED):
        sample = rng.sample(parallel_requests(tool), N_PARALLEL + N_PARALLEL_HELD_OUT + (i == 0))
        train += sample[:N_PARALLEL]
        held_out += sample[N_PARALLEL:]
    return train, held_out


def offer(tool: Tool, rng: random.Random) -> list[Row]:
    """Schemas of `tool` alone or, in half of the draws, of `tool` and another one in random order."""
    offered = [tool]
    if rng.random() < 0.5:
        offered.append(rng.choice([other for other in TOOLS if other is not tool]))
        rng.shuffle(offered)
    return [one.schema() for one in offered]


def call(name: str, arguments: Row) -> Row:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def tool_conversation(tool: Tool, text: str, arguments: list[Row], rng: random.Random) -> Row:
    """Request, call or calls, one tool message per call, and the reply that reads the results."""
    results = [{field: rng.choice(values) for field, values in tool.returns.items()} for _ in arguments]
    replies = [tool.reply.format(**row, **result) for row, result in zip(arguments, results, strict=True)]
    messages = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": "", "tool_calls": [call(tool.name, row) for row in arguments]},
        *({"role": "tool", "name": tool.name, "content": to_json(result)} for result in results),
        {"role": "assistant", "content": " ".join(replies)},
    ]
    return {"messages": messages, "tools": offer(tool, rng)}


def tool_calls(seed: int) -> list[Row]:
    """Conversations with tools on offer: one call, two calls, or none because the question needs none."""
    rng = generator(seed, "tool_calls")
    rows = [tool_conversation(*request, rng) for request in split_requests(seed)[0]]
    for question, fact in rng.sample(pool(seed, "groups").train, N_WITHOUT_CALL):
        rows.append(conversation(WITHOUT_NEED, question, fact.answer) | {"tools": offer(rng.choice(TOOLS), rng)})
    rng.shuffle(rows)
    return rows


def held_out_tool_call(seed: int) -> list[Row]:
    """Requests with the calls that they ask for."""
    rng = generator(seed, "heldout/tool_call")
    rows = [
        {
            "messages": [{"role": "user", "content": text}],
            "tools": offer(tool, rng),
            "expected": [{"name": tool.name, "arguments": row} for row in arguments],
        }
        for tool, text, arguments in split_requests(seed)[1]
    ]
    rng.shuffle(rows)
    return rows
