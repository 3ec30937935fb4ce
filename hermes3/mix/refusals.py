"""Does an assistant message refuse, or preach as an AI? Rules on its opening words, in data_mixes/rules/refusals.yml.

English alone. The Hermes 3 report removes refusals (arXiv 2408.11857) and does not say how. Here a message counts if it
  * declines what was asked, in whole or in its main part, even where it offers something else instead;
  * lectures the asker instead of answering; or
  * speaks as a generic assistant: "as an AI language model", "as of my knowledge cutoff" (a date of another model).
It does not count if it admits that it lacks a tool or a fact ("I don't have access to real-time data", "I cannot find a
flight", "the text does not say"), which a model that is offered tools must learn to say; nor if somebody else speaks:
in quotation marks, code, a letter, or a part that is played.
"""

from hermes3.mix import rules

# Refusals open a message, at times after a sentence of thanks. Of 15,751 real answers, 120 characters find 7 right, 240
# find 9 right, 800 add 1 wrong; 80 cut off the words that excuse a lacking tool, and 10 honest answers are hit.
OPENING = 240  # characters

_FILE = rules.load("refusals")
_PATTERNS = _FILE["patterns"]


def is_refusal(text: str) -> str | None:
    """The words in the opening of an assistant message that make it a refusal (lower case, long forms), or None."""
    opening = normalise(text[:OPENING])
    for rule in _FILE["rules"]:
        if any(hint in opening for hint in rule["hints"]) and (match := rule["pattern"].search(opening)):
            excused = rule.get("unless_lacking") and _PATTERNS["lacking"].search(opening)
            someone_else = _PATTERNS["letter"].match(opening) or _PATTERNS["played"].search(opening)
            quiz = len(text) < OPENING and _PATTERNS["quiz"].fullmatch(opening)
            return None if excused or someone_else or quiz else match[0]
    return None


def normalise(text: str) -> str:
    """Lower case, straight apostrophes, long forms, nothing between quotation marks."""
    text = _PATTERNS["quoted"].sub(" ", text.replace("’", "'")).lower().strip()
    if "'" in text:
        for short, long in _FILE["long_forms"].items():
            text = text.replace(short, long)
    return text
