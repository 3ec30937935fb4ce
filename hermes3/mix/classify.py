"""Rules that sort a conversation into one of the paper's eight categories; their words: data_mixes/rules/classify.yml.

The released data (NousResearch/Hermes-3-Dataset) has no category column, and the report names its categories without
defining them: these rules are our reading. The first rule that matches decides, and rules on what the user asks stand
before rules on the answer. A million rows pass here, so vocabulary is matched as sets of words, and a regular
expression runs only behind a cheap test or where it can anchor.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from hermes3.mix.adapt import Example
from hermes3.mix.vocabulary import Vocabulary

READ = 2000  # characters read of the system message, of the first user message, and of the answers together
HEAD, TAIL = 400, 200  # a long question says what it wants at its beginning or its end; material stands between them
WORD = re.compile(r"[a-z]+(?:\.js|\+\+|#|[0-9]*)")

_FILE = Vocabulary("classify")
WORDS = {name: _FILE.words(name) for name in _FILE.data["words"]}
MARKS = {name: _FILE.marks(name) for name in _FILE.data["marks"]}
PATTERNS = {name: _FILE.pattern(text) for name, text in _FILE.data["patterns"].items()}


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
    return View(has_tools, system.lower(), system, ask.lower(), ask, user_text, words, answer)


def _any(name: str, text: str) -> bool:
    return any(mark in text for mark in MARKS[name])


def _search(name: str, text: str) -> bool:
    return PATTERNS[name].search(text) is not None


def _match(name: str, text: str) -> bool:
    return PATTERNS[name].match(text) is not None


def uses_tools(v: View) -> bool:
    return v.has_tools or any(_any("tool_marks", text) for text in (v.system, v.user_text, v.answer) if "<" in text)


def is_agentic(v: View) -> bool:
    if _search("tool_system", v.system) or ("document" in v.user_text and _search("documents", v.user_text)):
        return True
    prompt = v.system + v.ask
    return "<" in prompt and len(set(PATTERNS["agent_tag"].findall(prompt))) >= 2


def names_a_character(v: View) -> bool:
    return _search("character_system", v.system) or _search("named_system", v.system_as_written)


def has_code(text: str) -> bool:
    return _any("code_marks", text) or ("```" in text and _any("fences", text))


def asks_for_code(v: View) -> bool:
    return bool(
        v.words & WORDS["languages"]
        or (
            v.words & WORDS["languages_and_more"]
            and (v.words & WORDS["code_nouns"] or _any("in_language", v.ask) or has_code(v.answer))
        )
        or has_code(v.user_text)
        or (v.words & WORDS["program_nouns"] and _search("program_ask", v.ask))
    )


def works_on_a_text(v: View) -> bool:
    brings_text = _match("text_task", v.ask) or _any("given_text", v.ask)
    return brings_text and not v.words & {"math", "mathematical", "equation"}


def asks_for_a_character(v: View) -> bool:
    return _match("character_ask", v.ask) or _match("named_ask", v.ask_as_written) or _any("perspective", v.ask)


def asks_for_math(v: View) -> bool:
    digits = len(PATTERNS["digits"].findall(v.ask))
    if (digits and (_search("sum", v.ask) or _search("sum_in_words", v.ask))) or (
        any(sign in v.ask for sign in "$\\^²=") and _search("formula", v.ask)
    ):
        return True
    if domain_weight(v) >= 4:  # physics, chemistry and economics calculate too
        return False
    terms = len(v.words & WORDS["math_terms"])
    if terms >= 3 or (terms and _search("math_task", v.ask)):
        return True
    return digits + len(v.words & WORDS["numbers"]) >= 2 and _search("quantity", v.ask)


def domain_weight(v: View) -> int:
    return 2 * len(v.words & WORDS["terms"]) + len(v.words & WORDS["topics"])


def is_about_a_domain(v: View) -> bool:
    """A question of a dozen words is about any topic that it names; a longer one meets such words by chance."""
    if (_any("choice_b", v.user_text) and _search("choices", v.user_text)) or _search("expert_system", v.system):
        return True
    return domain_weight(v) >= (1 if len(v.words) <= 12 else 2 + len(v.words) // 40)


def asks_for_writing(v: View) -> bool:
    return bool(v.words & WORDS["write_verbs"]) and _search("write", v.ask)


def asks_about_the_model(v: View) -> bool:
    return bool(v.words & {"you", "your"}) and _search("self", v.ask)


def marks_its_result(v: View) -> bool:
    return ("boxed{" in v.answer or "####" in v.answer) and _search("result", v.answer)


def prescribes(v: View) -> bool:
    return _search("directive", v.system)


def begins_with_code(v: View) -> bool:
    return has_code(v.answer[:300])


def acts(v: View) -> bool:
    return "*" in v.answer and _search("action", v.answer)


def denies(v: View) -> bool:
    return _match("denial", v.answer)


def anything(v: View) -> bool:
    return True


class CategoryRule(NamedTuple):
    category: str
    reason: str
    matches: Callable[[View], object]


RULES = tuple(CategoryRule(rule["category"], rule["reason"], globals()[rule["when"]]) for rule in _FILE.data["rules"])


def rule_of(row: Example) -> CategoryRule:
    """The first of `RULES` that matches an adapted row (`messages`, `tools`)."""
    seen = view(row)
    return next(rule for rule in RULES if rule.matches(seen))


def classify(row: Example) -> str:
    """The category, a key of `hermes3.mix.spec.CATEGORIES`, of an adapted row (`messages`, `tools`)."""
    return rule_of(row).category
