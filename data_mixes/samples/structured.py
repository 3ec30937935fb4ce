"""Answers with a form that a program can check: JSON mode and retrieval with citations."""

import itertools
from dataclasses import dataclass
from functools import cache

from words import (
    CITIES,
    COLOURS,
    DAYS,
    EVENTS,
    FOODS,
    GROUPS,
    NAMES,
    Row,
    combinations,
    conversation,
    generator,
    prompt,
)

from hermes3.chat.prompts import json_system, rag_system, rag_user, to_json


@dataclass(frozen=True)
class Form:
    """A JSON schema by its fields' values, and sentences that carry one value for each field.

    Text values stand in quotes, as they do in the answer, so that both have the same tokens (see tools.py).
    """

    title: str
    fields: dict[str, tuple[str | int, ...]]
    sentences: tuple[str, ...]

    def schema(self) -> Row:
        """JSON schema of the object."""
        types = {name: "integer" if isinstance(values[0], int) else "string" for name, values in self.fields.items()}
        properties = {name: {"type": kind} for name, kind in types.items()}
        return {"title": self.title, "type": "object", "properties": properties, "required": list(self.fields)}


FORMS = (
    Form(
        "Person",
        {"name": tuple(NAMES), "age": tuple(range(20, 40)), "city": tuple(CITIES)},
        (
            'My friend "{name}" is {age} and lives in "{city}".',
            'In "{city}" lives "{name}", who is {age}.',
            'This is "{name}" from "{city}", who is {age} now.',
        ),
    ),
    Form(
        "Order",
        {"item": tuple(FOODS), "count": tuple(range(2, 13))},
        (
            'Please send me {count} portions of "{item}".',
            'I would like "{item}", {count} times.',
            'We need "{item}" for {count} people.',
        ),
    ),
    Form(
        "Event",
        {"event": tuple(EVENTS), "day": tuple(DAYS), "place": tuple(CITIES)},
        (
            'The "{event}" is on "{day}" in "{place}".',
            'On "{day}" we have a "{event}" in "{place}".',
            'Come to "{place}" on "{day}" for the "{event}".',
        ),
    ),
    Form(
        "Pet",
        {"name": tuple(NAMES), "animal": tuple(GROUPS["animal"]), "colour": tuple(COLOURS)},
        (
            'My "{colour}" pet is a "{animal}" called "{name}".',
            'The "{animal}" called "{name}" is "{colour}".',
            'I have a "{animal}", its name is "{name}", its colour "{colour}".',
        ),
    ),
)
# Per form: conversations, those of them with three sentences, held-out sentences. One schema serves three answers.
N_JSON, N_JSON_TRIPLE, N_JSON_HELD_OUT = 56, 32, 20

JsonCase = tuple[str, Row]  # user's text, expected object


@cache
def split_json(seed: int) -> tuple[list[tuple[Form, list[JsonCase]]], list[tuple[Form, JsonCase]]]:
    """Training conversations as a form and one or three cases and, none of those among them, held-out cases."""
    rng = generator(seed, "json_mode/split")
    train, held_out = [], []
    for form in FORMS:
        values = (dict(zip(form.fields, v, strict=True)) for v in itertools.product(*form.fields.values()))
        cases = [(sentence.format(**row), row) for row in values for sentence in form.sentences]
        sample = rng.sample(cases, N_JSON + 2 * N_JSON_TRIPLE + N_JSON_HELD_OUT)
        lengths = [3] * N_JSON_TRIPLE + [1] * (N_JSON - N_JSON_TRIPLE)
        parts = iter(sample)
        train += [(form, list(itertools.islice(parts, length))) for length in lengths]
        held_out += [(form, case) for case in parts]
    rng.shuffle(train)
    rng.shuffle(held_out)
    return train, held_out


def json_mode(seed: int) -> list[Row]:
    """Sentences turned into the JSON object that the system message's schema asks for, one or three in turn."""
    return [
        conversation(json_system(form.schema()), *(turn for text, row in cases for turn in (text, to_json(row))))
        for form, cases in split_json(seed)[0]
    ]


def held_out_json_mode(seed: int) -> list[Row]:
    """Sentences with their schema and the expected object."""
    return [
        {"messages": prompt(json_system(form.schema()), text), "schema": form.schema(), "expected": row}
        for form, (text, row) in split_json(seed)[1]
    ]


# (title, question, statement, values); every document is one statement about one city
TOPICS = (
    ("Market", "When is the market of {city}?", "The market of {city} is on {value}.", DAYS),
    ("Mayor", "Who is the mayor of {city}?", "The mayor of {city} is {value}.", NAMES),
    ("Dish", "What is the dish of {city}?", "The dish of {city} is {value}.", FOODS),
)
N_RAG = 150


def rag(seed: int) -> list[Row]:
    """Questions on two or three documents; the answer cites the one that holds it.

    Each conversation draws its own facts (a question comes up to seven times), so only the documents give the answer.
    """
    rng = generator(seed, "rag")
    rows = []
    for (title, question, statement, values), city, _ in combinations(rng, N_RAG, TOPICS, CITIES, range(7)):
        cities = rng.sample([other for other in CITIES if other != city], rng.choice((1, 2)))
        place = rng.randrange(len(cities) + 1)
        cities.insert(place, city)
        drawn = rng.sample(values, len(cities))
        texts = [statement.format(city=one, value=value) for one, value in zip(cities, drawn, strict=True)]
        documents = [(f"{title} of {one}", text) for one, text in zip(cities, texts, strict=True)]
        reply = f"<co: {place}>{texts[place]}</co>\nCited Documents: {place}"
        rows.append(conversation(rag_system(), rag_user(question.format(city=city), documents), reply))
    return rows
