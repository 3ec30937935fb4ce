"""Function calling: eight small tools, single and parallel calls, and questions that need no tool.

The user's words carry every argument, so a call is right or wrong without a judge. Text arguments stand in quotes, as
they do in the call: a byte-level BPE gives " Tolan" and "Tolan" different tokens, and a model of this size copies a
token that it has read long before it learns which pairs of tokens spell the same word.
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
    "start": CITIES[:4],
    "end": CITIES[4:],
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
        ("city", "day"),
        (
            'What is the weather in "{city}" on "{day}"?',
            'Tell me the weather in "{city}" on "{day}".',
            'Will it rain in "{city}" on "{day}"?',
        ),
        {"sky": ("sunny", "cloudy", "rainy", "windy"), "degrees": (8, 12, 16, 20, 24)},
        "It is {sky} with {degrees} degrees.",
    ),
    Tool(
        "find_train",
        "Train to a city",
        ("city", "hour"),
        (
            'Find a train to "{city}" at {hour}.',
            'Is there a train to "{city}" at {hour}?',
            'I need a train to "{city}" at {hour}.',
        ),
        {"platform": (1, 2, 3, 4, 5)},
        "It leaves from platform {platform}.",
    ),
    Tool(
        "get_price",
        "Price of an item in a city",
        ("item", "city"),
        (
            'How much is "{item}" in "{city}"?',
            'What is the price of "{item}" in "{city}"?',
            'Tell me the price of "{item}" in "{city}".',
        ),
        {"price": (2, 3, 4, 5, 6)},
        "It costs {price} coins.",
    ),
    Tool(
        "set_alarm",
        "Set an alarm on a day",
        ("hour", "day"),
        (
            'Set an alarm for {hour} on "{day}".',
            'Wake me at {hour} on "{day}".',
            'I need an alarm at {hour} on "{day}".',
        ),
        {"status": ("set",)},
        "The alarm is set.",
    ),
    Tool(
        "add_event",
        "Add an event to the calendar",
        ("event", "day"),
        ('Add the "{event}" on "{day}".', 'Put the "{event}" on "{day}", please.', 'Plan the "{event}" for "{day}".'),
        {"status": ("added",)},
        "The event is added.",
    ),
    Tool(
        "send_message",
        "Send a message to a person",
        ("to", "text"),
        ('Send "{to}" the message "{text}".', 'Write to "{to}" that "{text}".', 'Let "{to}" know that "{text}".'),
        {"status": ("sent",)},
        "The message is sent.",
    ),
    Tool(
        "book_table",
        "Book a table in a city",
        ("city", "people"),
        (
            'Book a table in "{city}" for {people}.',
            'I need a table in "{city}" for {people}.',
            'In "{city}", seat {people}.',
        ),
        {"table": (1, 2, 3, 4, 5)},
        "You have table {table}.",
    ),
    Tool(
        "find_route",
        "Route between two cities",
        ("start", "end"),
        (
            'Find a route from "{start}" to "{end}".',
            'Lead me from "{start}" to "{end}".',
            'Go from "{start}" to "{end}".',
        ),
        {"hours": (1, 2, 3, 4, 5)},
        "It takes {hours} hours.",
    ),
)
PAIRED = TOOLS[:3]  # two values in the place of the first argument ask for two calls

# Per tool: conversations, those of them with three requests, held-out requests. The system message is long, the
# requests are short: three requests give three times the calls to learn from for a third more tokens.
N_TOOL, N_TOOL_TRIPLE, N_TOOL_HELD_OUT = 16, 10, 8
N_PARALLEL, N_PARALLEL_HELD_OUT = 14, 5  # per paired tool; one more is held out for the first, which makes 80 rows
N_WITHOUT_CALL = 42
WITHOUT_NEED = "Call a tool only when the question needs one."

Request = tuple[Tool, str, list[Row]]  # tool, user's text, arguments of each call


def single_requests(tool: Tool) -> list[Request]:
    """Every request of one call."""
    rows = (dict(zip(tool.arguments, v, strict=True)) for v in itertools.product(*map(VALUES.get, tool.arguments)))
    return [(tool, text.format(**row), [row]) for row in rows for text in tool.requests]


def parallel_requests(tool: Tool) -> list[Request]:
    """Every request of two calls of one tool that differ in the first argument."""
    first, *others = tool.arguments
    requests = []
    for left, right in itertools.permutations(VALUES[first], 2):
        for values in itertools.product(*(VALUES[name] for name in others)):
            rest = dict(zip(others, values, strict=True))
            calls = [{first: left} | rest, {first: right} | rest]
            both = {first: f'{left}" and "{right}'} | rest
            requests += [(tool, text.format(**both), calls) for text in tool.requests]
    return requests


@cache
def split_requests(seed: int) -> tuple[list[list[Request]], list[Request]]:
    """Training conversations as lists of one or three requests and, none of those among them, held-out requests."""
    rng = generator(seed, "tool_calls/split")
    train, held_out = [], []
    for tool in TOOLS:
        requests = iter(rng.sample(single_requests(tool), N_TOOL + 2 * N_TOOL_TRIPLE + N_TOOL_HELD_OUT))
        lengths = [3] * N_TOOL_TRIPLE + [1] * (N_TOOL - N_TOOL_TRIPLE)
        train += [list(itertools.islice(requests, length)) for length in lengths]
        held_out += requests
    for i, tool in enumerate(PAIRED):
        sample = rng.sample(parallel_requests(tool), N_PARALLEL + N_PARALLEL_HELD_OUT + (i == 0))
        train += [[request] for request in sample[:N_PARALLEL]]
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


def exchange(tool: Tool, text: str, arguments: list[Row], rng: random.Random) -> list[Row]:
    """Request, call or calls, one tool message per call, and the reply that reads the results."""
    results = [{field: rng.choice(values) for field, values in tool.returns.items()} for _ in arguments]
    return [
        {"role": "user", "content": text},
        {"role": "assistant", "content": "", "tool_calls": [call(tool.name, row) for row in arguments]},
        *({"role": "tool", "name": tool.name, "content": to_json(result)} for result in results),
        {"role": "assistant", "content": " ".join(tool.reply.format(**result) for result in results)},
    ]


def tool_calls(seed: int) -> list[Row]:
    """Conversations with tools on offer: one call, two calls, or none because the question needs none."""
    rng = generator(seed, "tool_calls")
    rows = [
        {
            "messages": [message for request in requests for message in exchange(*request, rng)],
            "tools": offer(requests[0][0], rng),
        }
        for requests in split_requests(seed)[0]
    ]
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
