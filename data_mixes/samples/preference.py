"""One request, two tones: supervised rows that use both equally, and preference pairs that always take the warm one.

Each opening is used equally often in training, so the supervised model gives both sides of a pair about the same total
log-probability; the answer after the opening is the same, so the tone alone is left to prefer.
"""

import itertools
from functools import cache

from words import CITIES, COLOURS, DAYS, EVENTS, FOODS, GROUPS, NAMES, Row, conversation, generator, pick_system, prompt

# Two words and a mark each, all eight with a different first word.
WARM = ("Sure thing.", "Of course.", "With pleasure.", "Right away.")
GRUMPY = ("Fine then.", "Oh well.", "Not again.", "As usual.")

# (request, answer, values of the slots)
REQUESTS = (
    ("{0} likes {1}. Suggest a snack for {2}.", "Give {0} some {1} on {2}.", (NAMES, FOODS, DAYS)),
    ("Plan a {1} in {0} on {2}.", "Meet in {0} on {2} for the {1}.", (CITIES, EVENTS, DAYS)),
    ("Remind me to call {0} in {1} on {2}.", "Call {0} in {1} on {2}.", (NAMES, CITIES, DAYS)),
    ("Suggest a gift of {0} from {1} for {2}.", "Bring {2} some {0} from {1}.", (FOODS, CITIES, NAMES)),
    ("Describe a {0} {1} in {2}.", "The {0} {1} sleeps by the gate of {2}.", (COLOURS, GROUPS["animal"], CITIES)),
    ("Make a label for {0} from {1} for {2}.", "The label says: {0} from {1} for {2}.", (FOODS, CITIES, NAMES)),
)
N_SUPERVISED, N_TRAIN, N_HELD_OUT = 48, 80, 20  # per request; 48 = 6 x 8 openings, 80 = 5 x 16 pairs of openings

Exchange = tuple[str, str]  # user's text, answer without an opening


@cache
def exchanges(seed: int) -> list[list[Exchange]]:
    """For each of REQUESTS, N_SUPERVISED + N_TRAIN + N_HELD_OUT different exchanges."""
    rng = generator(seed, "preference/split")
    n = N_SUPERVISED + N_TRAIN + N_HELD_OUT
    return [
        [(ask.format(*values), answer.format(*values)) for values in rng.sample(list(itertools.product(*slots)), n)]
        for ask, answer, slots in REQUESTS
    ]


def openings(seed: int) -> list[Row]:
    """Supervised rows: every request with every opening, equally often."""
    rng = generator(seed, "openings")
    rows = [
        conversation(pick_system(rng), text, f"{opening} {answer}")
        for group in exchanges(seed)
        for (text, answer), opening in zip(group[:N_SUPERVISED], itertools.cycle(WARM + GRUMPY), strict=False)
    ]
    rng.shuffle(rows)
    return rows


def pairs(seed: int, name: str, start: int, end: int) -> list[Row]:
    """Pairs of the exchanges from `start` to `end` of each request."""
    rng = generator(seed, name)
    rows = []
    for group in exchanges(seed):
        tones = itertools.cycle(itertools.product(WARM, GRUMPY))
        for (text, answer), (warm, grumpy) in zip(group[start:end], tones, strict=False):
            rows.append(
                {
                    "messages": prompt(pick_system(rng), text),
                    "chosen": {"role": "assistant", "content": f"{warm} {answer}"},
                    "rejected": {"role": "assistant", "content": f"{grumpy} {answer}"},
                }
            )
    rng.shuffle(rows)
    return rows


def preference_train(seed: int) -> list[Row]:
    """Pairs for preference training; no supervised row has their requests."""
    return pairs(seed, "preference/train", N_SUPERVISED, N_SUPERVISED + N_TRAIN)


def held_out_preference(seed: int) -> list[Row]:
    """Pairs whose requests no training row has."""
    return pairs(seed, "heldout/preference", N_SUPERVISED + N_TRAIN, N_SUPERVISED + N_TRAIN + N_HELD_OUT)
