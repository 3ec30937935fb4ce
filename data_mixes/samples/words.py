"""Word lists and the small helpers that every generator of the sample set shares.

The lists are closed and short on purpose: a 3 M-parameter model sees each word in many places, so that it can answer
combinations that it never saw. Lands, cities and rivers are invented.
"""

import itertools
import random
from collections.abc import Sequence
from typing import Any

from hermes3.chat.prompts import DEFAULT_SYSTEM

Row = dict[str, Any]


def listed(text: str) -> list[str]:
    """The words of `text`."""
    return text.split()


NAMES = listed("Anna Ben Clara David Emma Felix Grace Henry Nora Oscar")
CITIES = listed("Tolan Brask Miren Korda Felden Havel Jasko Lindar")
LANDS = listed("Ardel Bromia Cestra Dunvar Eloria Fenmark Gorvia Haldor")
RIVERS = listed("Anra Dray Eska Gath Kessa Lume Pryn Venn")
GOODS = listed("salt wool silk copper glass paper timber wine")
FOODS = listed("bread rice soup cheese honey cake milk tea butter salad")
EVENTS = listed("picnic concert meeting lesson dinner race party walk")
DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
COLOURS = listed("red blue green black white brown grey yellow")
THINGS = listed("plums pears coins books cups pens stones shells")

GROUPS = {
    "fruit": listed("plum pear peach lemon cherry mango melon fig"),
    "animal": listed("fox horse rabbit goat bear wolf cow mouse"),
    "tool": listed("hammer saw wrench drill spade chisel rake ladder"),
    "vehicle": listed("bus train truck tram bike car van ferry"),
}
OPPOSITES = listed("hot:cold big:small fast:slow happy:sad full:empty old:new rich:poor wet:dry open:closed loud:quiet")

# Personas that leave the answer as it is: a fact must survive a system message that it was never seen with.
NEUTRAL_SYSTEMS = (
    "You are a patient teacher.",
    "You are a friendly librarian.",
    "You are a calm guide.",
    "You are a careful clerk.",
    "You answer in plain words.",
    "Keep every answer short.",
)


def generator(seed: int, name: str) -> random.Random:
    """Random numbers of one named part, so that a change in one part moves no other."""
    return random.Random(f"{seed}/{name}")


def a(noun: str) -> str:
    """`noun` with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capital(text: str) -> str:
    """`text` with its first letter in upper case and the rest as it is."""
    return text[0].upper() + text[1:]


def pick_system(rng: random.Random) -> str | None:
    """System message: none in 60 % of the draws (the template inserts the default), else default, empty or neutral."""
    draw = rng.random()
    if draw < 0.60:
        return None
    if draw < 0.70:
        return DEFAULT_SYSTEM
    return "" if draw < 0.77 else rng.choice(NEUTRAL_SYSTEMS)


def prompt(system: str | None, user: str) -> list[Row]:
    """Messages that end with the user's turn; `system` None leaves the system turn out, "" writes it empty."""
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": user}]


def conversation(system: str | None, *turns: str) -> Row:
    """Training row of `turns`, user and assistant in alternation."""
    head = [] if system is None else [{"role": "system", "content": system}]
    roles = itertools.cycle(("user", "assistant"))
    return {"messages": [*head, *({"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False))]}


def combinations(rng: random.Random, n: int, *lists: Sequence[Any]) -> list[tuple[Any, ...]]:
    """`n` different tuples with one entry of each list, in random order."""
    return rng.sample(list(itertools.product(*lists)), n)
