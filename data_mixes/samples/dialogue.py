"""Roleplaying, content generation, and steering: answers that depend on the system message or on the user's words."""

from collections.abc import Callable

from facts import pool
from words import (
    CITIES,
    DAYS,
    EVENTS,
    FOODS,
    GROUPS,
    NAMES,
    Row,
    a,
    capital,
    combinations,
    conversation,
    generator,
    pick_system,
)

# (name, role, word that opens every line of the character)
CHARACTERS = (
    ("Captain Brine", "pirate", "Arr"),
    ("Sir Oswin", "knight", "Hail"),
    ("Unit Seven", "robot", "Beep"),
    ("Old Merrow", "wizard", "Behold"),
    ("Mother Crumb", "baker", "Welcome"),
    ("Miss Fern", "gardener", "Ah"),
    ("Inspector Vane", "detective", "Aha"),
    ("Ember", "dragon", "Roar"),
)
MONOLOGUE = "Show your inner monologue first."


def introduction(name: str, who: str, role: str, hail: str) -> tuple[str, str]:
    return f"Hello, I am {name}. Who are you?", f"{hail}, {name}! I am {who}, {a(role)}."


def meal(food: str, role: str, hail: str) -> tuple[str, str]:
    return f"Do you like {food}?", f"{hail}, I do! Every {role} loves {food}."


def journey(city: str, day: str, hail: str) -> tuple[str, str]:
    return f"Shall we go to {city} on {day}?", f"{hail}, yes! On {day} we go to {city}."


def roleplaying(seed: int) -> list[Row]:
    """Characters that keep their name, role and opening word over one to three turns; some think aloud first."""
    rng = generator(seed, "roleplaying")
    rows = []
    for (who, role, hail), name, food in combinations(rng, 90, CHARACTERS, NAMES, FOODS):
        system = f"You are {who}, {a(role)}. Stay in character."
        rows.append(conversation(system, *introduction(name, who, role, hail), *meal(food, role, hail)))
    for (who, role, hail), city, day in combinations(rng, 60, CHARACTERS, CITIES, DAYS):
        rows.append(conversation(f"You are {who}, {a(role)}. Stay in character.", *journey(city, day, hail)))
    for (who, role, hail), name, food, city in combinations(rng, 50, CHARACTERS, NAMES, FOODS, CITIES):
        turns = (*introduction(name, who, role, hail), *meal(food, role, hail), *journey(city, rng.choice(DAYS), hail))
        rows.append(conversation(f"You are {who}, {a(role)}. Stay in character.", *turns))
    for (who, role, hail), food in combinations(rng, 40, CHARACTERS, FOODS):
        question, answer = meal(food, role, hail)
        thought = f"<INNER_MONOLOGUE>\nThey ask about {food}.\n</INNER_MONOLOGUE>\n"
        rows.append(conversation(f"You are {who}, {a(role)}. {MONOLOGUE}", question, thought + answer))
    rng.shuffle(rows)
    return rows


def content_generation(seed: int) -> list[Row]:
    """Notes, couplets, stories and slogans from the words that the user gives."""
    rng = generator(seed, "content_generation")
    rows = []
    for name, event, day, food in combinations(rng, 40, NAMES, EVENTS, DAYS, FOODS):
        request = f"Write a note to {name}: the {event} is on {day}, bring {food}."
        note = f"Dear {name},\nthe {event} is on {day}. Please bring some {food}.\nWarm wishes"
        rows.append(conversation(pick_system(rng), request, note))
    for animal, city in combinations(rng, 36, GROUPS["animal"], CITIES):
        couplet = f"{capital(a(animal))} came to {city} one day,\nand there it found a place to stay."
        rows.append(conversation(pick_system(rng), f"Write two lines about {a(animal)} in {city}.", couplet))
    for name, animal, fruit in combinations(rng, 40, NAMES, GROUPS["animal"], GROUPS["fruit"]):
        request = f"Tell a short story about {name}, {a(animal)} and {a(fruit)}."
        story = (
            f"One day {name} met {a(animal)} on the road. The {animal} had {a(fruit)}. They shared it and went home."
        )
        rows.append(conversation(pick_system(rng), request, story))
    for food, city in combinations(rng, 36, FOODS, CITIES):
        slogan = f"Taste {city}: {food} as it should be!"
        rows.append(conversation(pick_system(rng), f"Write a slogan for {food} from {city}.", slogan))
    rng.shuffle(rows)
    return rows


# System rule -> what it makes of a plain answer.
RULES: dict[str, Callable[[str], str]] = {
    "End every answer with the words: and that is all.": lambda text: f"{text[:-1]}, and that is all.",
    "Begin every answer with the word Note.": lambda text: f"Note: {text}",
    "Answer with one word.": lambda text: f"{capital(text[:-1].split()[-1])}.",
    "Give every answer twice.": lambda text: f"{text} {text}",
    "Put every answer in brackets.": lambda text: f"({text})",
    "Number every answer.": lambda text: f"1. {text}",
}


def steering_alignment(seed: int) -> list[Row]:
    """System rules that change the form, favourites that the system sets, and even-handed answers on taste."""
    rng = generator(seed, "steering_alignment")
    pairs = [pair for kind in ("groups", "opposites", "calendar") for pair in pool(seed, kind).train]
    rows = []
    for rule, apply in RULES.items():
        rows += [conversation(rule, question, apply(fact.answer)) for question, fact in rng.sample(pairs, 17)]
    questions = ("What is your favourite food?", "Which food do you like best?", "Name your favourite food.")
    for food, question in combinations(rng, 30, FOODS, questions):
        rows.append(conversation(f"Your favourite food is {food}.", question, f"My favourite food is {food}."))
    tastes = [(left, right) for left in FOODS for right in FOODS if left != right]
    for left, right in rng.sample(tastes, 24):
        answer = f"That is a matter of taste. Some like {left}, others like {right}."
        rows.append(conversation(pick_system(rng), f"Which is better, {left} or {right}?", answer))
    rng.shuffle(rows)
    return rows
