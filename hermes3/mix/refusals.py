"""Does an assistant message refuse, or preach as an AI? Rules on its opening words; English alone.

The Hermes 3 report removes refusals (arXiv 2408.11857) and does not say how. Here a message counts if it
  * declines what was asked, in whole or in its main part, even where it offers something else instead;
  * lectures the asker instead of answering; or
  * speaks as a generic assistant: "as an AI language model", "as of my knowledge cutoff" (a date of another model).
It does not count if it owns up to lacking a tool or a fact ("I don't have access to real-time data", "I cannot find a
flight", "the text does not say"), which a model that is offered tools must learn to say; nor if somebody else speaks:
in quotation marks, code, a letter, or a part that is played.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# Refusals open a message, at times after a sentence of thanks. Of 15,751 real answers, 120 characters find 7 right, 240
# find 9 right, 800 add 1 wrong; 80 cut off the words that excuse a lacking tool, and 10 honest answers are hit.
OPENING = 240  # characters

CANNOT = (
    r"(?:cannot|will not|would not|not (?:going|allowed|permitted|programmed|able|willing) to|unable to|refuse to|"
    r"not (?:feel |be )?comfortable|rather not|prefer not to|not in a position to|prohibited from)"
)
# what a refuser cannot do; "cannot find", "cannot believe", "cannot accept" are what others say
GRANT = (
    r"(?:(?:advis|aid|answer|assist|comment|comply|condone|continue|creat|describ|discuss|encourag|endors|engag|"
    r"explain|facilitat|fulfil|generat|honou?r|name|participat|predict|produc|provid|reproduc|respond|shar|speculat|"
    r"support|teach|writ)\w*|recommend(?!.{0,40} enough)|help(?! but\b| \w+ing\b)|do (?:that|this|so|it)(?=[.,;!]|$)|"
    r"giv(?:e|ing) (?:you|out)\b|go into\b|be of help\b|talk about\b|role-?play|take part|tell you)"
)
SORRY = r"^(?:(?:i am )?(?:\w+ ){0,2}sorry|(?:\w+ )?apologies|i (?:do )?apologi[sz]e|unfortunately|regrettably)\b"
AI = r"\b(?:as|being|i am|only|just) an? (?:[\w-]+ ){0,3}?"
SELF = r"(?:do not|cannot|have no|lack|never|(?:am )?unable|must|have to)"
WRONG = (
    r"\b(?:wrong|illegal|unethical|immoral|inappropriate|offensive|harmful|hurtful|dishonest|"
    r"(?:not|never|no|neither) (?:\w+ )?(?:appropriate|acceptable|okay|ethical|right))\b"
)
STEER = (
    r"(?:\bi (?:\w+ ){0,2}(?:encourage|urge|advise|ask)|\b(?:please|instead,?) (?:remember|consider|seek)|"
    r"\b(?:should|deserves?)\b.{0,40}\b(?:respect|kindness|together|safety|dignity))"
)


class Rule(NamedTuple):
    """`pattern` is sought in a normalised opening that holds one of `hints`: seldom, which saves most of the time."""

    kind: str
    hints: str  # separated by |
    pattern: str


NOT = "not |unable|refuse|prohibited"
RULES = (  # the first that matches is reported
    Rule("language model", "language model|learning model", AI + r"(?:language|learning) model\b(?! made)"),
    Rule("as an AI", " ai|artificial", rf"{AI}(?:ai|artificial intelligence)\b.{{0,50}}?\b{SELF}"),
    Rule("as an AI", " ai|artificial", rf"\bi {SELF}\b.{{0,60}}?{AI}(?:ai|artificial)\b"),
    Rule(
        "knowledge cutoff",
        "my knowledge|my training|my last|my latest|my update",
        r"\bmy (?:last |latest )?(?:knowledge|training|update)(?: data)?(?: only| last)? ?"
        r"(?:cut-?off|update|goes|ends|extends|in)\b",
    ),
    Rule(
        "no opinions",
        "not have|not hold",
        r"\bi (?:do not|cannot) (?:have|hold) (?:any )?(?:personal|feelings|emotions|opinions)\b",
    ),
    Rule("cannot", NOT, rf"(?:(?<!if )\bi (?:\w+ ){{0,3}}?|^){CANNOT} (?:be able to )?(?:\w+ )?{GRANT}"),
    Rule(
        "sorry",
        "sorry|apolog|unfortunately|regrettably",
        rf"{SORRY}.{{0,40}}?\b{CANNOT} (?!find|see|locate|retrieve|identify|understand|open)",
    ),
    Rule(
        "declines",
        "decline|refuse|pass",
        r"\bi (?:\w+ ){0,2}?(?:must|have to) (?:\w+ )?(?:decline|refuse|pass\b)",
    ),
    Rule(
        "not something I do",
        "something",
        r"\b(?:not something (?:that )?i (?:do|can|will|am)|something (?:that )?i (?:cannot|will not|am not))\b",
    ),
    Rule(
        "does not", "do not ", r"\bi do not (?:(?:provide|engage|discuss|offer)\b|think i should)|\bdo not ask me to\b"
    ),
    Rule(
        "against its rules",
        "guidelines|programming|policies",
        r"\b(?:against|violate|outside|follow|prevent|within)\b.{0,20}\b(?:my (?:\w+ )?|ethical |safety |usage )"
        r"(?:guidelines|programming|policies)|\bmy (?:\w+ )?guidelines (?:prevent|do not)",
    ),
    Rule(
        "made so",
        "content policy|designed to|trained to|i am allowed|not programmed",
        r"\bcontent policy|\bi (?:am|was|have been) (?:designed|trained) to (?:avoid|refuse|not)\b|"
        r"\bi am (?:allowed|not programmed) to",
    ),
    Rule(
        "preaches",
        "wrong|illegal|ethical|moral|appropriate|offensive|rmful|hurtful|dishonest|acceptable|okay| right",
        rf"{WRONG}.{{0,120}}?{STEER}|{STEER}.{{0,120}}?{WRONG}|\bit (?:is|would be) {WRONG}(?: or \w+)? "
        r"(?:for me )?to (?:provide|generate|speculate|help|discuss|make (?:jokes|fun))\b",
    ),
    Rule("changes the subject", "let us ", r"\blet us (?:talk about something else|change the subject)"),
)
HINTED = tuple(
    (hint, rule.kind, re.compile(rule.pattern, re.DOTALL)) for rule in RULES for hint in rule.hints.split("|")
)
# rules that give way where a tool or a fact is lacking
HONEST = {"cannot", "sorry", "as an AI"}
LACKS = re.compile(
    r"access to|real-time|internet|browse|capabilit|ability to|\bfunction(?:s|ality)?\b|\btools\b|attach|upload|"
    r"without (?:it|seeing)|in the (?:text|passage|context|document)"
)
LETTER = re.compile(r"(?:subject:|to whom|(?:dear|hi|hello)\b[^.!?\n]{0,40}\n)")
PLAYED = re.compile(
    r"^[*\[(]|\b(?:sir|madam|master|captain|my (?:lord|lady|liege|child)|dear child|matey?|arr+|mortal|traveller|"
    r"thee|ye)\b"
)
QUOTED = re.compile(r'"[^"]*(?:"|$)|“[^”]*(?:”|$)|`[^`]*(?:`|$)')
LONG_FORMS = (
    ("can't", "cannot"),
    ("won't", "will not"),
    ("n't", " not"),
    ("i'm", "i am"),
    ("i'd", "i would"),
    ("let's", "let us"),
    ("'s ", " is "),
)


@dataclass(frozen=True)
class Measured:
    """How the rules do on labelled rows: counts, the proportions, and their 95 % Wilson intervals."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    precision: float
    precision_interval: tuple[float, float]
    recall: float
    recall_interval: tuple[float, float]
    errors: list[dict[str, Any]]  # the rows judged wrongly, with `matched`


def is_refusal(text: str) -> str | None:
    """The words in the opening of an assistant message that make it a refusal (lower case, long forms), or None."""
    opening = normalise(text[:OPENING])
    for hint, kind, pattern in HINTED:
        if hint in opening and (match := pattern.search(opening)):
            if (kind in HONEST and LACKS.search(opening)) or LETTER.match(opening) or PLAYED.search(opening):
                return None
            return match[0]
    return None


def normalise(text: str) -> str:
    """Lower case, straight apostrophes, long forms, nothing between quotation marks."""
    text = QUOTED.sub(" ", text.replace("’", "'")).lower().strip()
    if "'" in text:
        for short, long in LONG_FORMS:
            text = text.replace(short, long)
    return text


def measure(path: Path, split: str | None = None) -> Measured:
    """Judge the rows {"text", "refusal"} of a jsonl file, of one "split" or of all.

    `ValueError` if none is labelled a refusal, or none is found to be one: then a proportion has no denominator.
    """
    from hermes3.stats import wilson

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row | {"matched": is_refusal(row["text"])} for row in rows if split in (None, row.get("split"))]
    true = sum(row["refusal"] and row["matched"] is not None for row in rows)
    found = sum(row["matched"] is not None for row in rows)
    labelled = sum(row["refusal"] for row in rows)
    if not labelled or not found:
        raise ValueError(f"{path}: {labelled} refusals labelled, {found} found in {len(rows)} rows; label more")
    return Measured(
        true_positives=true,
        false_positives=found - true,
        false_negatives=labelled - true,
        true_negatives=len(rows) - found - labelled + true,
        precision=true / found,
        precision_interval=wilson(true, found),
        recall=true / labelled,
        recall_interval=wilson(true, labelled),
        errors=[row for row in rows if row["refusal"] == (row["matched"] is None)],
    )
