"""Checks of form and length: `name: (answer, value) -> bool`, where `value` is what the system message asked for.

A sentence ends with . ! or ? before a blank, a closing quotation mark, or the end; words are what blanks divide.
"""

import json
import re
from typing import Any

END = "<|im_end|>"
BULLET = re.compile(r"^\s*[-*•] +\S", re.MULTILINE)
NUMBERED = re.compile(r"^\s*(\d+)[.)] +\S", re.MULTILINE)
SENTENCE_END = re.compile(r"[.!?…]+[\"”’')\]]*(?=\s|$)")


def followed(doc: dict, results: list[str]) -> dict[str, int]:
    """followed: something is said, and every check of the row holds."""
    answer = results[0].removesuffix(END).strip()
    checks = json.loads(doc["row"])["checks"]
    return {"followed": int(bool(answer) and all(CHECKS[name](answer, value) for name, value in checks.items()))}


def words(answer: str) -> list[str]:
    """What blanks divide, if it holds a letter or a digit: a dash between blanks is no word."""
    return [word for word in answer.split() if any(map(str.isalnum, word))]


def lines(answer: str) -> list[str]:
    return [line.strip() for line in answer.splitlines() if line.strip()]


def paragraphs(answer: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", answer) if part.strip()]


def sentences(answer: str) -> int:
    """Sentences, the last one also where it has no stop."""
    return len([part for part in SENTENCE_END.split(answer) if words(part)])


def contains(answer: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(text.casefold())}(?!\w)", answer.casefold()) is not None


def json_keys(answer: str, keys: list[str]) -> bool:
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and list(value) == keys


def json_list(answer: str, length: int) -> bool:
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, list) and len(value) == length


def numbered(answer: str, count: int) -> bool:
    return [int(number) for number in NUMBERED.findall(answer)] == list(range(1, count + 1))


def table(answer: str, columns: list[str]) -> bool:
    """A Markdown table and nothing else, with these headings and at least one row."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines(answer) if line.startswith("|")]
    whole = len(rows) == len(lines(answer)) >= 3 and all(len(row) == len(columns) for row in rows)
    return whole and rows[0] == columns and all(re.fullmatch(r":?-+:?", cell) for cell in rows[1])


def csv(answer: str, header: str) -> bool:
    first, *rest = lines(answer)
    return first == header and bool(rest) and all(line.count(",") == header.count(",") for line in rest)


def code_block(answer: str, language: str) -> bool:
    """One fenced block, marked with its language, and no word outside it."""
    return re.fullmatch(rf"```{re.escape(language)}\n(?:(?!```).)+\n```", answer, re.DOTALL) is not None


def between(count: int, bounds: list[int]) -> bool:
    return bounds[0] <= count <= bounds[1]


CHECKS: dict[str, Any] = {
    "bullets": lambda a, n: len(BULLET.findall(a)) == n,
    "only_bullets": lambda a, n: len(lines(a)) == n and all(BULLET.match(line) for line in lines(a)),
    "numbered": numbered,
    "json_keys": json_keys,
    "json_list": json_list,
    "table": table,
    "csv": csv,
    "code_block": code_block,
    "upper": lambda a, _: a.upper() == a and any(map(str.isalpha, a)),
    "lower": lambda a, _: a.lower() == a and any(map(str.isalpha, a)),
    "starts": lambda a, text: a.startswith(text),
    "ends": lambda a, text: a.endswith(text),
    "each_line_starts": lambda a, text: all(line.startswith(text) for line in lines(a)),
    "each_line_ends": lambda a, text: all(line.endswith(text) for line in lines(a)),
    "contains": lambda a, texts: all(contains(a, text) for text in texts),
    "times": lambda a, pair: len(re.findall(rf"(?<!\w){re.escape(pair[0])}(?!\w)", a)) == pair[1],
    "without": lambda a, texts: not any(contains(a, text) for text in texts),
    "without_characters": lambda a, characters: not set(characters) & set(a.casefold()),
    "matches": lambda a, pattern: re.fullmatch(pattern, a, re.DOTALL) is not None,
    "one_of": lambda a, texts: a in texts,
    "paragraphs": lambda a, n: len(paragraphs(a)) == n,
    "lines": lambda a, n: len(lines(a)) == n,
    "words": lambda a, n: len(words(a)) == n,
    "words_between": lambda a, bounds: between(len(words(a)), bounds),
    "sentences": lambda a, n: sentences(a) == n,
    "sentences_between": lambda a, bounds: between(sentences(a), bounds),
    "characters_at_most": lambda a, n: len(a) <= n,
    "words_a_line_at_most": lambda a, n: all(len(words(line)) <= n for line in lines(a)),
    "first_letters": lambda a, text: "".join(line[:1].upper() for line in lines(a)) == text,
}
