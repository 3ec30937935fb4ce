"""Questions with one right answer: general knowledge, an invented atlas, and sums; training rows and choice rows.

Every fact is asked in several phrasings. One or two of them are held out: the model learns the answer from the others,
and the held-out question measures whether the fact, not the sentence, was learnt. There are few facts (115), because a
3 M-parameter model that starts from nothing needs some fifty exposures to each.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from words import (
    CITIES,
    COLOURS,
    DAYS,
    EVENTS,
    FOODS,
    GOODS,
    GROUPS,
    LANDS,
    NAMES,
    OPPOSITES,
    RIVERS,
    THINGS,
    Row,
    a,
    capital,
    combinations,
    conversation,
    generator,
    pick_system,
    prompt,
)

from hermes3.chat.prompts import SCRATCHPAD_SYSTEM

# Held-out questions of each kind: 160 in all.
HELD_OUT = {"groups": 44, "opposites": 28, "calendar": 16, "lands": 40, "sums": 32}
SUMMANDS = range(1, 6)
EXPERT = "You are an expert on the lands of Ordan."


@dataclass(frozen=True)
class Fact:
    """Phrasings of one question, its answer, and three well-formed wrong answers."""

    questions: tuple[str, ...]
    answer: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Pool:
    """(question, fact) pairs for training, and those whose question no training row has."""

    train: list[tuple[str, Fact]]
    held_out: list[tuple[str, Fact]]


def build_fact(questions: tuple[str, ...], answer: str, value: str, others: list[str], rng: random.Random) -> Fact:
    """Fact whose `answer` has {} for `value`; three of `others` take its place in the wrong answers."""
    wrong = rng.sample([other for other in others if other != value], 3)
    return Fact(questions, answer.format(value), tuple(answer.format(other) for other in wrong))


def group_facts(rng: random.Random) -> Iterator[Fact]:
    for group, words in GROUPS.items():
        for word in words:
            noun = a(word)
            first, second, third, fourth = (a(option) for option in rng.sample(list(GROUPS), 4))
            questions = (
                f"What is {noun}?",
                f"What kind of thing is {noun}?",
                f"Tell me what {noun} is.",
                f"Say what {noun} is.",
                f"Which group does {noun} belong to?",
                f"I read about {noun}. What is that?",
                f"Do you know what {noun} is?",
                f"Is {noun} {first}, {second}, {third} or {fourth}?",
            )
            wrong = tuple(f"{capital(noun)} is {a(other)}." for other in GROUPS if other != group)
            yield Fact(questions, f"{capital(noun)} is {a(group)}.", wrong)


def opposite_facts(rng: random.Random) -> Iterator[Fact]:
    pairs = [tuple(pair.split(":")) for pair in OPPOSITES]
    for word, opposite in [*pairs, *((right, left) for left, right in pairs)]:
        questions = (
            f"What is the opposite of {word}?",
            f"Name the opposite of {word}.",
            f"Tell me the opposite of {word}.",
            f"Which word is the opposite of {word}?",
            f"Give me the opposite of {word}.",
            f"Do you know the opposite of {word}?",
            f"Think of the word {word}. What is its opposite?",
        )
        others = [other for pair in pairs for other in pair if other != word]
        yield build_fact(questions, f"The opposite of {word} is {{}}.", opposite, others, rng)


def calendar_facts(rng: random.Random) -> Iterator[Fact]:
    for i, day in enumerate(DAYS):
        for side, step in (("after", 1), ("before", -1)):
            questions = (
                f"What is the day {side} {day}?",
                f"Which day comes {side} {day}?",
                f"Name the day {side} {day}.",
                f"Tell me the day {side} {day}.",
                f"Do you know the day {side} {day}?",
                f"Which day is right {side} {day}?",
                f"Today is {day}. {'What day is tomorrow' if step == 1 else 'What day was yesterday'}?",
            )
            others = [other for other in DAYS if other != day]
            yield build_fact(questions, f"The day {side} {day} is {{}}.", DAYS[(i + step) % 7], others, rng)


def land_facts(rng: random.Random) -> Iterator[Fact]:
    topics = (
        (
            "capital",
            "{}",
            CITIES[: len(LANDS)],
            "Which city is the capital of {}?",
            "I am going to {}. What is its capital?",
        ),
        ("river", "the {}", RIVERS, "Which river runs through {}?", "I want to sail in {}. What is its river?"),
        ("main good", "{}", GOODS, "Which main good does {} sell?", "I trade with {}. What is its main good?"),
    )
    for i, land in enumerate(LANDS):
        for topic, form, values, *own in topics:
            questions = (
                f"What is the {topic} of {land}?",
                f"Name the {topic} of {land}.",
                f"Tell me the {topic} of {land}.",
                f"Give me the {topic} of {land}.",
                f"Do you know the {topic} of {land}?",
                *(question.format(land) for question in own),
            )
            yield build_fact(questions, f"The {topic} of {land} is {form}.", values[i], values, rng)


def sum_facts(rng: random.Random) -> Iterator[Fact]:
    for left in SUMMANDS:
        for right in SUMMANDS:
            questions = (
                f"What is {left} plus {right}?",
                f"Add {left} and {right}.",
                f"Tell me {left} plus {right}.",
                f"Do you know {left} plus {right}?",
                f"How much is {left} and {right}?",
                f"What is the sum of {left} and {right}?",
                f"I have {left} coins and find {right} more. How many is that?",
            )
            others = [str(total) for total in range(2, 11)]
            yield build_fact(questions, f"{left} plus {right} is {{}}.", str(left + right), others, rng)


FACTS = {
    "groups": group_facts,
    "opposites": opposite_facts,
    "calendar": calendar_facts,
    "lands": land_facts,
    "sums": sum_facts,
}


@cache
def pool(seed: int, kind: str) -> Pool:
    """Facts of `kind`, one of FACTS, split into training and held-out questions."""
    rng = generator(seed, f"facts/{kind}")
    facts = list(FACTS[kind](rng))
    # A random phrasing of every fact, then a second one of every fact, ...: no fact loses many of its phrasings.
    orders = ([(question, fact) for question in rng.sample(fact.questions, len(fact.questions))] for fact in facts)
    layers = zip(*orders, strict=True)
    pairs = [pair for layer in layers for pair in rng.sample(layer, len(layer))]
    return Pool(train=pairs[HELD_OUT[kind] :], held_out=pairs[: HELD_OUT[kind]])


def single_turns(pairs: list[tuple[str, Fact]], rng: random.Random) -> list[Row]:
    return [conversation(pick_system(rng), question, fact.answer) for question, fact in pairs]


def several(pairs: list[tuple[str, Fact]], n_turns: int, n_joined: int, rng: random.Random) -> list[Row]:
    """Conversations of two turns, and single turns that ask three questions at once."""
    rows = []
    for _ in range(n_turns):
        (question, fact), (then, other) = rng.sample(pairs, 2)
        rows.append(conversation(pick_system(rng), question, fact.answer, then, other.answer))
    for _ in range(n_joined):
        questions, facts = zip(*rng.sample(pairs, 3), strict=True)
        rows.append(conversation(pick_system(rng), " ".join(questions), " ".join(fact.answer for fact in facts)))
    return rows


def general_instructions(seed: int) -> list[Row]:
    """Groups of things, opposites, days, counting, echoes; one question, two in turn, or three at once."""
    rng = generator(seed, "general_instructions")
    pairs = [pair for kind in ("groups", "opposites", "calendar") for pair in pool(seed, kind).train]
    rows = single_turns(pairs, rng) + several(pairs, 70, 140, rng)
    counts = [(low, high) for low in range(1, 8) for high in range(low + 2, 11)]
    for low, high in rng.sample(counts, 24):
        numbers = ", ".join(str(number) for number in range(low, high + 1))
        rows.append(conversation(pick_system(rng), f"Count from {low} to {high}.", f"{numbers}."))
    # Echoes in quotes: the cheapest rows that teach what a tool call needs, to copy a value.
    values = [*NAMES, *CITIES, *FOODS, *EVENTS, *DAYS, *COLOURS, *GROUPS["animal"]]
    for _ in range(140):
        words = " and ".join(f'"{value}"' for value in rng.sample(values, rng.choice((2, 3))))
        rows.append(conversation(pick_system(rng), f"Repeat the words {words}.", f"You said {words}."))
    rng.shuffle(rows)
    return rows


def domain_expert(seed: int) -> list[Row]:
    """The invented atlas: capital, river and main good of each land; half of the single questions name the expert."""
    rng = generator(seed, "domain_expert")
    pairs = pool(seed, "lands").train
    rows = [
        conversation(EXPERT if rng.random() < 0.5 else pick_system(rng), question, fact.answer)
        for question, fact in pairs
    ]
    rows += several(pairs, 40, 90, rng)
    rng.shuffle(rows)
    return rows


def math(seed: int) -> list[Row]:
    """Sums and differences of small numbers, and word problems with a scratchpad."""
    rng = generator(seed, "math")
    pairs = pool(seed, "sums").train
    rows = single_turns(pairs, rng) + several(pairs, 20, 70, rng)
    differences = [(left, right) for left in range(2, 8) for right in range(1, left)]
    for (left, right), ask in combinations(rng, 40, differences, ("What is {0} minus {1}?", "Take {1} from {0}.")):
        answer = f"{left} minus {right} is {left - right}."
        rows.append(conversation(pick_system(rng), ask.format(left, right), answer))
    for name, left, right, things in combinations(rng, 48, NAMES, SUMMANDS, SUMMANDS, THINGS):
        question = f"{name} has {left} {things} and gets {right} more. How many {things} does {name} have?"
        answer = (
            f"<SCRATCHPAD>\n{left} plus {right} is {left + right}.\n</SCRATCHPAD>\n"
            f"<SOLUTION>\nNow {name} has {left + right} {things}.\n</SOLUTION>"
        )
        rows.append(conversation(SCRATCHPAD_SYSTEM, question, answer))
    rng.shuffle(rows)
    return rows


def held_out_choice(seed: int) -> list[Row]:
    """Questions with four answers each; the right one stands equally often at each of the four places."""
    rng = generator(seed, "heldout/choice")
    pairs = [pair for kind in FACTS for pair in pool(seed, kind).held_out]
    rng.shuffle(pairs)
    places = [i % 4 for i in range(len(pairs))]
    rng.shuffle(places)
    rows = []
    for (question, fact), place in zip(pairs, places, strict=True):
        choices = list(fact.wrong)
        choices.insert(place, fact.answer)
        rows.append({"messages": prompt(pick_system(rng), question), "choices": choices, "answer": place})
    return rows
