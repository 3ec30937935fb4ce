"""Rules that sort a conversation into one of the paper's eight categories, and how often they are right.

The released data (NousResearch/Hermes-3-Dataset) has no category column, and the report names its categories without
defining them: these rules are our reading. The first rule that matches decides, and rules on what the user asks stand
before rules on the answer. A million rows pass here, so vocabulary is matched as sets of words, and a regular
expression runs only behind a cheap test or where it can anchor.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from hermes3.mix import category_words as w
from hermes3.mix.adapters import Row
from hermes3.mix.categories import CATEGORIES

Confusion = dict[str, dict[str, int]]  # true category -> predicted category -> rows
READ = 2000  # characters read of the system message, of the first user message, and of the answers together
HEAD, TAIL = 400, 200  # a long ask says what it wants at its beginning or its end; material stands between them
WORD = re.compile(r"[a-z]+(?:\.js|\+\+|#|[0-9]*)")


class View(NamedTuple):
    """What the rules read of a row, in lower case unless `as_written`."""

    has_tools: bool  # tools, tool calls or tool messages
    system: str
    system_as_written: str
    ask: str  # the head and the tail of the first user message
    ask_as_written: str
    asked: str  # its first READ characters, after a line break
    words: set[str]  # of `ask`, each also without a final s
    answer: str  # after a line break


def view(row: Row) -> View:
    has_tools, system, asked, answers, length = bool(row.get("tools")), "", None, [], 0
    for message in row["messages"]:
        role, content = message["role"], message["content"]
        if role == "assistant":
            has_tools = has_tools or "tool_calls" in message
            if length < READ:
                answers.append(content[: READ - length])
                length += len(content)
        elif role == "user":
            asked = content if asked is None else asked
        elif role == "system":
            system = system or content[:READ]
        else:
            has_tools = True
    asked = asked or ""
    ask = asked if len(asked) <= HEAD + TAIL else f"{asked[:HEAD]}\n{asked[-TAIL:]}"
    words = set(WORD.findall(ask.lower()))
    words |= {word[:-1] for word in words if word[-1] == "s"}
    asked, answer = "\n" + asked[:READ].lower(), "\n" + "\n".join(answers).lower()
    return View(has_tools, system.lower(), system, ask.lower(), ask, asked, words, answer)


def uses_tools(v: View) -> bool:
    return v.has_tools or any(w.has_any(w.TOOL_MARKS, text) for text in (v.system, v.asked, v.answer) if "<" in text)


def is_agentic(v: View) -> bool:
    if w.TOOL_SYSTEM.search(v.system) or ("document" in v.asked and w.DOCUMENTS.search(v.asked)):
        return True
    prompt = v.system + v.ask
    return "<" in prompt and len(set(w.AGENT_TAG.findall(prompt))) >= 2


def names_a_character(v: View) -> bool:
    return bool(w.CHARACTER_SYSTEM.search(v.system) or w.NAMED_SYSTEM.search(v.system_as_written))


def has_code(text: str) -> bool:
    return w.has_any(w.CODE_MARKS, text) or ("```" in text and w.has_any(w.FENCES, text))


def asks_for_code(v: View) -> bool:
    return bool(
        v.words & w.LANGUAGES
        or (
            v.words & w.LANGUAGES_AND_MORE
            and (v.words & w.CODE_NOUNS or w.has_any(w.IN_LANGUAGE, v.ask) or has_code(v.answer))
        )
        or has_code(v.asked)
        or (v.words & w.PROGRAM_NOUNS and w.PROGRAM_ASK.search(v.ask))
    )


def works_on_a_text(v: View) -> bool:
    return bool(w.TEXT_TASK.match(v.ask) or w.has_any(w.GIVEN_TEXT, v.ask)) and not v.words & {
        "math",
        "mathematical",
        "equation",
    }


def asks_for_a_character(v: View) -> bool:
    return bool(w.CHARACTER_ASK.match(v.ask) or w.NAMED_ASK.match(v.ask_as_written) or w.has_any(w.PERSPECTIVE, v.ask))


def asks_for_math(v: View) -> bool:
    digits = len(w.DIGITS.findall(v.ask))
    if (digits and (w.SUM.search(v.ask) or w.SUM_IN_WORDS.search(v.ask))) or (
        any(sign in v.ask for sign in "$\\^²=") and w.FORMULA.search(v.ask)
    ):
        return True
    if weight(v) >= 4:  # physics, chemistry and economics calculate too
        return False
    terms = len(v.words & w.MATH_TERMS)
    if terms >= 3 or (terms and w.MATH_TASK.search(v.ask)):
        return True
    return digits + len(v.words & w.NUMBERS) >= 2 and bool(w.QUANTITY.search(v.ask))


def weight(v: View) -> int:
    return 2 * len(v.words & w.TERMS) + len(v.words & w.TOPICS)


def is_about_a_domain(v: View) -> bool:
    """A question of a dozen words is about any topic that it names; a longer ask meets such words by chance."""
    if (w.has_any(w.CHOICE_B, v.asked) and w.CHOICES.search(v.asked)) or w.EXPERT_SYSTEM.search(v.system):
        return True
    return weight(v) >= (1 if len(v.words) <= 12 else 2 + len(v.words) // 40)


class Rule(NamedTuple):
    category: str
    reason: str
    matches: Callable[[View], object]


RULES = (
    Rule(
        "tool_use_agentic_rag", "tools are declared or called, or their tags, a schema or citations appear", uses_tools
    ),
    Rule("tool_use_agentic_rag", "the prompt sets JSON mode, numbered documents or two agent tags", is_agentic),
    Rule("roleplaying", "the system message names a character", names_a_character),
    Rule("coding", "the ask names a programming language, wants a program or brings code", asks_for_code),
    Rule(
        "general_instructions", "the ask is work on a text that it brings: translate, classify, read", works_on_a_text
    ),
    Rule("roleplaying", "the ask opens with a role to play, or wants someone's voice", asks_for_a_character),
    Rule(
        "content_generation",
        "the ask wants a poem, story, email, article or the like",
        lambda v: v.words & w.WRITE_VERBS and w.WRITE.search(v.ask),
    ),
    Rule("math", "the ask has a sum, a formula, mathematical terms, or numbers and a quantity to find", asks_for_math),
    Rule("steering_alignment", "the system message prescribes form or views", lambda v: w.DIRECTIVE.search(v.system)),
    Rule(
        "steering_alignment",
        "the ask is about the model itself",
        lambda v: v.words & {"you", "your"} and w.SELF.search(v.ask),
    ),
    Rule("domain_expert", "exam choices, an expert as system message, or a discipline's vocabulary", is_about_a_domain),
    Rule("coding", "the answer begins with code", lambda v: has_code(v.answer[:300])),
    Rule(
        "math",
        "the answer marks its result",
        lambda v: ("boxed{" in v.answer or "####" in v.answer) and w.RESULT.search(v.answer),
    ),
    Rule("roleplaying", "the answer acts between asterisks", lambda v: "*" in v.answer and w.ACTION.search(v.answer)),
    Rule("steering_alignment", "the answer opens with what the model cannot do", lambda v: w.DENIAL.match(v.answer)),
    Rule("general_instructions", "none of the above", lambda v: True),
)


def rule_of(row: Row) -> Rule:
    """The first of `RULES` that matches an adapted row (`messages`, `tools`)."""
    seen = view(row)
    return next(rule for rule in RULES if rule.matches(seen))


def classify(row: Row) -> str:
    """The category, a key of `CATEGORIES`, of an adapted row (`messages`, `tools`)."""
    return rule_of(row).category


def confusion(rows: Iterable[tuple[str, Row]]) -> Confusion:
    """Counts over (true category, adapted row); every true category that occurs has all eight predictions."""
    counts: Confusion = {}
    for true, row in rows:
        if true not in CATEGORIES:
            raise ValueError(f"category {true}: not one of {', '.join(CATEGORIES)}")
        counts.setdefault(true, dict.fromkeys(CATEGORIES, 0))[classify(row)] += 1
    return counts


def table(counts: Confusion) -> str:
    """Markdown: a line per true category, a column per predicted one, recall and precision with their counts.

    Recall of a category is right / true, precision is right / predicted. Precision depends on how many rows of each
    category were counted; recall does not.
    """
    lines = [f"| true \\ predicted | {' | '.join(CATEGORIES)} | recall |", f"|---|{'---:|' * (len(CATEGORIES) + 1)}"]
    for true in (key for key in CATEGORIES if key in counts):
        row = counts[true]
        cells = [str(row[predicted]) for predicted in CATEGORIES]
        lines.append(f"| {true} | {' | '.join(cells)} | {_share(row[true], sum(row.values()))} |")
    precision = [
        _share(counts.get(key, {}).get(key, 0), sum(row[key] for row in counts.values())) for key in CATEGORIES
    ]
    return "\n".join([*lines, f"| precision | {' | '.join(precision)} | |"]) + "\n"


def _share(right: int, of: int) -> str:
    return f"{100 * right / of:.1f} % ({right}/{of})" if of else ""
