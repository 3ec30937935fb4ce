"""Checks of form and length: `name: (answer, value) -> bool`, where `value` is what the system message asked for.

A sentence ends with . ! or ? before a blank, a closing quotation mark, or the end, but not after a common abbreviation.
Words are what blanks, dashes and slashes divide; a hyphen divides what strings four words or a pronoun together.
"""

import csv
import json
import re
import sys
import unicodedata
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # lm-eval loads this file by its path
from alignment_text import no_constant, spoken, unique_keys  # noqa: E402

BULLET = re.compile(r"^([ \t]*)(?:\*\*)?([-•‣–]|\*(?= ))(?:\*\*)?[ \t]*(?=[^\s*–-])", re.MULTILINE)
NUMBERED = re.compile(r"^[ \t]*(?:\*\*|__)?(\d+)[.)](?:\*\*|__)?[ \t]*(?=\S)", re.MULTILINE)
SENTENCE_END = re.compile(r"[.!?…。！？]+[\"”’')\]*_]*(?=\s|$)")
ABBREVIATION = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|Prof|St|vs|etc|approx|No|e\.g|i\.e|a\.m|p\.m|U\.S|U\.K|[A-Z])\.(?=\s+\S)")
COMPOUND = re.compile(r"\w+(?:'\w+)?(?:-\w+(?:'\w+)?)+")
PRONOUNS = {"i", "i'm", "you", "we", "they", "don't", "can't", "it's", "is", "are"}
EMPHASIS = "*_ \n"


def followed(doc: dict, results: list[str]) -> dict[str, int]:
    """followed: something is said, and every check of the row holds."""
    answer = spoken(results[0])
    checks = json.loads(doc["row"])["checks"]
    return {"followed": int(bool(answer) and all(CHECKS[name](answer, value) for name, value in checks.items()))}


def words(answer: str) -> list[str]:
    """What blanks, dashes and slashes divide, if it holds a letter or a digit."""

    def divided(compound: re.Match[str]) -> str:
        parts = compound[0].split("-")
        strung = len(parts) >= 4 or {part.casefold() for part in parts} & PRONOUNS
        return " ".join(parts) if strung else compound[0]

    text = COMPOUND.sub(divided, answer.replace("’", "'"))
    text = re.sub(r"(?<=[^\W\d])[_/+·|–—]+(?=[^\W\d])|(?<=[^\W\d]{2})[.,;:](?=[^\W\d]{2})", " ", text)
    return [word for word in text.split() if any(map(str.isalnum, word))]


def lines(answer: str) -> list[str]:
    return [line.strip() for line in answer.splitlines() if line.strip()]


def paragraphs(answer: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", answer) if part.strip()]


def sentences(answer: str) -> int:
    """Sentences, the last one also where it has no stop."""
    text = ABBREVIATION.sub(lambda match: match[0][:-1], answer)
    return len([part for part in SENTENCE_END.split(text) if words(part)])


def contains(answer: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(text.casefold())}(?!\w)", answer.casefold()) is not None


def starts(answer: str, text: str) -> bool:
    """`text` opens the answer, in emphasis or not, and is no part of a longer word."""
    return any(re.match(re.escape(text) + (r"(?!\w)" if text[-1].isalnum() else ""), one) for one in _bare(answer))


def ends(answer: str, text: str) -> bool:
    return any(
        re.search((r"(?<!\w)" if text[0].isalnum() else "") + re.escape(text) + r"\Z", one) for one in _bare(answer)
    )


def _bare(answer: str) -> tuple[str, ...]:
    """The answer as it is, and without emphasis or quotation marks around it."""
    return answer, answer.strip(EMPHASIS), answer.strip(EMPHASIS + "\"“”'")


def bullets(answer: str, count: int, marks: str = "-*•‣–") -> bool:
    """As many bullets, all of one level: one below another makes it another list."""
    listed = BULLET.findall(answer)
    level = {len(indent.expandtabs()) for indent, _ in listed}
    return len(listed) == count and len(level) == 1 and all(mark in marks for _, mark in listed)


def only_bullets(answer: str, count: int) -> bool:
    return bullets(answer, count) and len(lines(answer)) == count


def as_json(answer: str) -> Any:
    """The value of an answer that is JSON alone; None for one that is not, or has a key twice."""
    try:
        return json.loads(answer, object_pairs_hook=unique_keys, parse_constant=no_constant)
    except (ValueError, RecursionError):
        return None


def json_list(answer: str, length: int, kind: type = object) -> bool:
    value = as_json(answer)
    return isinstance(value, list) and len(value) == length and all(isinstance(one, kind) for one in value)


def json_keys(answer: str, keys: list[str]) -> bool:
    value = as_json(answer)
    return isinstance(value, dict) and list(value) == keys


def numbered(answer: str, count: int) -> bool:
    return [int(number) for number in NUMBERED.findall(answer)] == list(range(1, count + 1))


def table(answer: str, columns: list[str]) -> bool:
    """A Markdown table and nothing else, with these headings and at least one row that holds something."""
    rows = [[cell.strip(EMPHASIS) for cell in line.strip("|").split("|")] for line in lines(answer) if line[0] == "|"]
    whole = len(rows) == len(lines(answer)) >= 3 and all(len(row) == len(columns) and any(row) for row in rows)
    return whole and rows[0] == columns and all(re.fullmatch(r":?-+:?", cell) for cell in rows[1])


def comma_separated(answer: str, header: str) -> bool:
    first, *rest = lines(answer)
    rows = list(csv.reader(rest))
    return first == header and bool(rows) and all(len(row) == len(header.split(",")) and any(row) for row in rows)


def code_block(answer: str, language: str) -> bool:
    """One fenced block, marked with its language, and no word outside it."""
    fence = rf"```[ \t]*{re.escape(language)}[ \t]*\n(?:(?!```).)*\S(?:(?!```).)*\n[ \t]*```"
    return re.fullmatch(fence, answer, re.DOTALL | re.IGNORECASE) is not None


def of_one_case(answer: str, change: Any) -> bool:
    """Whether no letter has another form of one letter in the case asked for: ß has no common capital."""
    letters = [letter for letter in answer if letter.isalpha()]
    return bool(letters) and all(change(letter) == letter or len(change(letter)) > 1 for letter in letters)


def is_time(answer: str, form: str) -> bool:
    """A time or date that exists, in the form of `strptime` with all its digits."""
    try:
        return datetime.strptime(answer, form).strftime(form) == answer
    except ValueError:
        return False


def without_characters(answer: str, characters: str) -> bool:
    text = unicodedata.normalize("NFKC", answer).casefold()
    return not set(characters) & set(text) and not (characters.isdigit() and any(map(str.isnumeric, text)))


def first_letters(answer: str, text: str) -> bool:
    letters = [next((letter for letter in line if letter.isalnum()), "") for line in lines(answer)]
    return "".join(letters).upper() == text


def between(count: int, bounds: list[int]) -> bool:
    return bounds[0] <= count <= bounds[1]


CHECKS: dict[str, Any] = {
    "bullets": bullets,
    "hyphens": lambda a, n: bullets(a, n, "-"),
    "only_bullets": only_bullets,
    "numbered": numbered,
    "json_keys": json_keys,
    "json_list": json_list,
    "json_strings": lambda a, n: json_list(a, n, str),
    "table": table,
    "csv": comma_separated,
    "code_block": code_block,
    "upper": lambda a, _: of_one_case(a, str.upper),
    "lower": lambda a, _: of_one_case(a, str.lower),
    "starts": starts,
    "ends": ends,
    "each_line_starts": lambda a, text: all(line.startswith(text) for line in lines(a)),
    "each_line_ends": lambda a, text: all(line.endswith(text) for line in lines(a)),
    "contains": lambda a, texts: all(contains(a, text) for text in texts),
    "times": lambda a, pair: len(re.findall(rf"(?<!\w){re.escape(pair[0])}(?!\w)", a)) == pair[1],
    "without": lambda a, texts: not any(contains(a, text) for text in texts),
    "without_characters": without_characters,
    "matches": lambda a, pattern: re.fullmatch(pattern, a, re.DOTALL) is not None,
    "one_of": lambda a, texts: a.strip(EMPHASIS) in texts,
    "time": is_time,
    "paragraphs": lambda a, n: len(paragraphs(a)) == n,
    "lines": lambda a, n: len(lines(a)) == n,
    "words": lambda a, n: len(words(a)) == n,
    "words_between": lambda a, bounds: between(len(words(a)), bounds),
    "sentences": lambda a, n: sentences(a) == n,
    "sentences_between": lambda a, bounds: between(sentences(a), bounds),
    "characters_at_most": lambda a, n: len(a) <= n,
    "words_a_line_at_most": lambda a, n: all(len(words(line)) <= n for line in lines(a)),
    "first_letters": first_letters,
}
