"""Does an assistant message refuse, or preach as an AI? Rules on its opening words, in data_mixes/rules/refusals.yml.

English alone. A message counts if it declines what was asked, even where it offers something else instead, lectures the
asker, or speaks as a generic assistant ("as an AI language model", "as of my knowledge cutoff"). It does not count if
it admits that it lacks a tool or a fact, which a model that is offered tools must learn to say; nor if somebody else
speaks: in quotation marks, code, a letter, or a part that is played."""

import re

from hermes3.mix import rules

# Of 15,751 real answers, 120 characters find 7 right, 240 find 9 right, 800 add 1 wrong; 80 cut off excuses: 10 wrong
OPENING = 240

_FILE = rules.load("refusals")
_PATTERNS = _FILE["patterns"]
_RULES = [(hint, rule["pattern"], rule.get("unless_lacking")) for rule in _FILE["rules"] for hint in rule["hints"]]
# what an opening must hold, for RE2: a hint, or a short form or quotation, whose change may make one
HINTED = '["“`]|' + "|".join(map(re.escape, dict.fromkeys(hint for hint, *_ in _RULES)))
HINTED += "".join("|" + short.replace("'", "['’]") for short in _FILE["long_forms"])


def is_refusal(text: str) -> str | None:
    """The words in the opening of an assistant message that make it a refusal (lower case, long forms), or None."""
    opening = text[:OPENING].replace("’", "'")
    if '"' in opening or "“" in opening or "`" in opening:
        opening = _PATTERNS["quoted"].sub(" ", opening)
    opening = opening.lower().strip()
    for short, long in _FILE["long_forms"].items() if "'" in opening else ():
        opening = opening.replace(short, long)
    for hint, pattern, unless_lacking in _RULES:
        if hint in opening and (match := pattern.search(opening)):
            excused = unless_lacking and _PATTERNS["lacking"].search(opening)
            someone_else = _PATTERNS["letter"].match(opening) or _PATTERNS["played"].search(opening)
            quiz = len(text) < OPENING and _PATTERNS["quiz"].fullmatch(opening)
            return None if excused or someone_else or quiz else match[0]
    return None
