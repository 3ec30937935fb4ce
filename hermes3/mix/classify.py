"""Rules that sort a conversation into one of the paper's eight categories; they are data_mixes/rules/classify.yml. The
released data (NousResearch/Hermes-3-Dataset) has no category column, and the report names its categories without
defining them: these rules are our reading. The first that matches decides, those on the ask before those on answers."""

import re
from collections.abc import Callable
from typing import Any

from hermes3.messages import ROLES
from hermes3.mix import rules
from hermes3.mix.adapt import Example

READ = 2000  # characters read of the system message, of the first user message, and of the answers together
HEAD, TAIL = 400, 200  # a long question says what it wants at its beginning or its end; material stands between them
WORD = re.compile(r"[a-z]+(?:\.js|\+\+|#|[0-9]*)")

_FILE = rules.load("classify")
WORDS, MARKS, PATTERNS = _FILE["words"], _FILE["marks"], _FILE["patterns"]
View = dict[str, Any]


def view(row: Example) -> View:
    """What the rules read of a conversation, in lower case unless `as_written`."""
    said: dict[str, list[str]] = {role: [] for role in ROLES}
    for message in row["messages"]:
        said[message["role"]].append(message["content"])
    system, user = (next(iter(said[role]), "") for role in ("system", "user"))
    ask = user if len(user) <= HEAD + TAIL else f"{user[:HEAD]}\n{user[-TAIL:]}"
    words = set(WORD.findall(ask.lower()))
    answers, left = [], READ
    for content in said["assistant"]:
        answers.append(content[:left])
        left -= len(answers[-1])
    answer = "\n" + "\n".join(answers).lower()
    return {
        "has_tools": row.get("tools") or said["tool"] or any("tool_calls" in message for message in row["messages"]),
        "system": system[:READ].lower(),
        "system_as_written": system[:READ],
        "ask": ask.lower(),
        "ask_as_written": ask,
        "user_text": "\n" + user[:READ].lower(),
        "words": words | {word[:-1] for word in words if word[-1] == "s"},  # of `ask`, also in the singular
        "answer": answer,
        "answer_head": answer[:300],
    }


def has_two_agent_tags(v: View) -> bool:
    return len(set(PATTERNS["agent_tag"].findall(v["system"] + v["ask"]))) >= 2


def has_math(v: View) -> bool:
    ask, words = v["ask"], v["words"]
    digits = len(PATTERNS["digits"].findall(ask))
    sums = digits and (PATTERNS["sum"].search(ask) or PATTERNS["sum_in_words"].search(ask))
    if sums or PATTERNS["formula"].search(ask):
        return True
    if domain_weight(v) >= 4:  # physics, chemistry and economics calculate too
        return False
    terms = len(words & WORDS["math_terms"])
    if terms >= 3 or (terms and PATTERNS["math_task"].search(ask)):
        return True
    return digits + len(words & WORDS["numbers"]) >= 2 and bool(PATTERNS["quantity"].search(ask))


def domain_weight(v: View) -> int:
    return 2 * len(v["words"] & WORDS["terms"]) + len(v["words"] & WORDS["topics"])


def has_domain_words(v: View) -> bool:
    """A question of a dozen words is about any topic that it names; a longer one meets such words by chance."""
    return domain_weight(v) >= (1 if len(v["words"]) <= 12 else 2 + len(v["words"]) // 40)


def _test(condition: str | list[Any], every: bool = False) -> Callable[[View], bool]:
    """The test that the file writes: any of a list, each of a list within it; `FIELD VERB NAME`, or a name above."""
    if isinstance(condition, list):
        tests, combine = [_test(one, not every) for one in condition], all if every else any
        return lambda v: combine(test(v) for test in tests)
    *words, name = condition.split()
    if not words:
        return globals().get(name, lambda v: v[name])
    if words[0] == "not":
        opposite = _test(condition.removeprefix("not "))
        return lambda v: not opposite(v)
    field, verb = words
    if verb == "words":
        return lambda v: not WORDS[name].isdisjoint(v["words"])
    if verb == "has":
        return lambda v: any(mark in v[field] for mark in MARKS[name])
    find = getattr(PATTERNS[name], verb)  # search or match
    return lambda v: find(v[field]) is not None


RULES = [(rule["category"], _test(rule["when"])) for rule in _FILE["rules"]]


def classify(row: Example) -> str:
    """The category, a key of `hermes3.mix.spec.CATEGORIES`, of an adapted row (`messages`, `tools`)."""
    seen = view(row)
    return next(category for category, matches in RULES if matches(seen))
