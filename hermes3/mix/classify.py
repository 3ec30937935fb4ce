"""Rules that sort a conversation into one of the paper's eight categories; they are data_mixes/rules/classify.yml.

The released data (NousResearch/Hermes-3-Dataset) has no category column, and the report names its categories without
defining them: these rules are our reading. The first rule that matches decides, and rules on what the user asks stand
before rules on the answer. A million rows pass here, so vocabulary is matched as sets of words.
"""

import re
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

from hermes3.mix import rules
from hermes3.mix.adapt import Example

READ = 2000  # characters read of the system message, of the first user message, and of the answers together
HEAD, TAIL = 400, 200  # a long question says what it wants at its beginning or its end; material stands between them
WORD = re.compile(r"[a-z]+(?:\.js|\+\+|#|[0-9]*)")

_FILE = rules.load("classify")
WORDS, MARKS, PATTERNS = _FILE["words"], _FILE["marks"], _FILE["patterns"]


class View(NamedTuple):
    """What the rules read of a conversation, in lower case unless `as_written`."""

    has_tools: bool  # tools, tool calls or tool messages
    system: str
    system_as_written: str
    ask: str  # the head and the tail of the first user message
    ask_as_written: str
    user_text: str  # its first READ characters, after a line break
    words: set[str]  # of `ask`, each also without a final s
    answer: str  # after a line break
    answer_head: str


def view(row: Example) -> View:
    has_tools, system, first_user, answers, length = bool(row.get("tools")), "", None, [], 0
    for message in row["messages"]:
        role, content = message["role"], message["content"]
        if role == "assistant":
            has_tools = has_tools or "tool_calls" in message
            if length < READ:
                answers.append(content[: READ - length])
                length += len(content)
        elif role == "user":
            first_user = content if first_user is None else first_user
        elif role == "system":
            system = system or content[:READ]
        else:
            has_tools = True
    first_user = first_user or ""
    ask = first_user if len(first_user) <= HEAD + TAIL else f"{first_user[:HEAD]}\n{first_user[-TAIL:]}"
    words = set(WORD.findall(ask.lower()))
    words |= {word[:-1] for word in words if word[-1] == "s"}
    user_text, answer = "\n" + first_user[:READ].lower(), "\n" + "\n".join(answers).lower()
    return View(has_tools, system.lower(), system, ask.lower(), ask, user_text, words, answer, answer[:300])


# --- what the file names by one word


def has_two_agent_tags(v: View) -> bool:
    return len(set(PATTERNS["agent_tag"].findall(v.system + v.ask))) >= 2


def has_math(v: View) -> bool:
    digits, search = len(PATTERNS["digits"].findall(v.ask)), {name: PATTERNS[name].search for name in PATTERNS}
    if (digits and (search["sum"](v.ask) or search["sum_in_words"](v.ask))) or search["formula"](v.ask):
        return True
    if domain_weight(v) >= 4:  # physics, chemistry and economics calculate too
        return False
    terms = len(v.words & WORDS["math_terms"])
    if terms >= 3 or (terms and search["math_task"](v.ask)):
        return True
    return digits + len(v.words & WORDS["numbers"]) >= 2 and bool(search["quantity"](v.ask))


def domain_weight(v: View) -> int:
    return 2 * len(v.words & WORDS["terms"]) + len(v.words & WORDS["topics"])


def has_domain_words(v: View) -> bool:
    """A question of a dozen words is about any topic that it names; a longer one meets such words by chance."""
    return domain_weight(v) >= (1 if len(v.words) <= 12 else 2 + len(v.words) // 40)


def _test(condition: str | list[Any], every: bool = False) -> Callable[[View], bool]:
    """The test that the file writes: any of a list, each of a list within it; `FIELD VERB NAME`, or a name above."""
    if isinstance(condition, list):
        tests, combine = [_test(one, not every) for one in condition], all if every else any
        return lambda v: combine(test(v) for test in tests)
    if " " not in condition:
        return attrgetter(condition) if condition in View._fields else globals()[condition]
    if condition.startswith("not "):
        opposite = _test(condition.removeprefix("not "))
        return lambda v: not opposite(v)
    field, verb, name = condition.split()
    if verb == "words":
        return lambda v: not WORDS[name].isdisjoint(v.words)
    at = View._fields.index(field)
    if verb == "has":
        return lambda v: any(mark in v[at] for mark in MARKS[name])
    find = getattr(PATTERNS[name], verb)  # search or match
    return lambda v: find(v[at]) is not None


class CategoryRule(NamedTuple):
    category: str
    reason: str
    matches: Callable[[View], bool]


RULES = tuple(CategoryRule(rule["category"], rule["reason"], _test(rule["when"])) for rule in _FILE["rules"])


def rule_of(row: Example) -> CategoryRule:
    """The first of `RULES` that matches an adapted row (`messages`, `tools`); the last one always does."""
    seen = view(row)
    return next(rule for rule in RULES if rule.matches(seen))


def classify(row: Example) -> str:
    """The category, a key of `hermes3.mix.spec.CATEGORIES`, of an adapted row (`messages`, `tools`)."""
    return rule_of(row).category
