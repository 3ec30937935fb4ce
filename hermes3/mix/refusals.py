"""Does an assistant message refuse, or preach as an AI? Rules on its opening words, in data_mixes/rules/refusals.yml.

English alone. The Hermes 3 report removes refusals (arXiv 2408.11857) and does not say how. Here a message counts if it
  * declines what was asked, in whole or in its main part, even where it offers something else instead;
  * lectures the asker instead of answering; or
  * speaks as a generic assistant: "as an AI language model", "as of my knowledge cutoff" (a date of another model).
It does not count if it admits that it lacks a tool or a fact ("I don't have access to real-time data", "I cannot find a
flight", "the text does not say"), which a model that is offered tools must learn to say; nor if somebody else speaks:
in quotation marks, code, a letter, or a part that is played.
"""

import re

from hermes3.mix.vocabulary import Vocabulary

# Refusals open a message, at times after a sentence of thanks. Of 15,751 real answers, 120 characters find 7 right, 240
# find 9 right, 800 add 1 wrong; 80 cut off the words that excuse a lacking tool, and 10 honest answers are hit.
OPENING = 240  # characters

_RULES = Vocabulary("refusals")
# (hint, pattern, whether it gives way where a tool or a fact is lacking), in order
_HINTED = tuple(
    (hint, pattern, rule.get("unless_lacking", False))
    for rule in _RULES.data["rules"]
    for pattern in [_RULES.pattern(rule["pattern"], re.DOTALL)]
    for hint in rule["hints"]
)
_LACKING, _LETTER, _PLAYED, _QUOTED = (
    _RULES.pattern(_RULES.data[name]) for name in ("lacking", "letter", "played", "quoted")
)


def is_refusal(text: str) -> str | None:
    """The words in the opening of an assistant message that make it a refusal (lower case, long forms), or None."""
    opening = normalise(text[:OPENING])
    for hint, pattern, unless_lacking in _HINTED:
        if hint in opening and (match := pattern.search(opening)):
            if unless_lacking and _LACKING.search(opening):
                return None
            return None if _LETTER.match(opening) or _PLAYED.search(opening) else match[0]
    return None


def normalise(text: str) -> str:
    """Lower case, straight apostrophes, long forms, nothing between quotation marks."""
    text = _QUOTED.sub(" ", text.replace("’", "'")).lower().strip()
    if "'" in text:
        for short, long in _RULES.data["long_forms"].items():
            text = text.replace(short, long)
    return text
