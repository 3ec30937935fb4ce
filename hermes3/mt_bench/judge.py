"""What the judge is asked, and how its rating is read."""

import re

from hermes3.mt_bench.questions import Question

VERSION = 1  # of the wording below: another wording gives other ratings
SYSTEM = "You grade the answers of an AI assistant. You are fair, strict, and do not care how long an answer is."
TASK = """\
Grade the assistant's answer to the user's {which}. Is it helpful, to the point, correct, thorough and well written, and
does it do all that was asked? {reference}First explain your judgement in a few sentences. Then write one last line,
with a whole number from 1 (useless) to 10 (could not be better) in double square brackets, like this:
Rating: [[5]]"""
WITH_REFERENCE = "Compare it with the reference, which is right, and name every mistake. "
AGAIN = "I could not read a rating. Reply with one line alone: Rating: [[N]], where N is a whole number from 1 to 10."
RATING = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)


def prompt(question: Question, answers: list[str], turn: int) -> list[dict[str, str]]:
    """Messages that ask for a rating of `answers[turn]` alone; the second turn is shown with the first before it."""
    parts = []
    for i in range(turn + 1):
        parts += [f"=== User, message {i + 1} ===\n{question.turns[i]}"]
        parts += [f"=== Assistant, answer {i + 1} ===\n{answers[i]}"]
    references = question.references[: turn + 1]
    parts += [f"=== Reference for message {i + 1} ===\n{text}" for i, text in enumerate(references) if text]
    which = "second message" if turn else "message"
    task = TASK.format(which=which, reference=WITH_REFERENCE if any(references) else "")
    parts.append(f"=== Your task ===\n{task}")
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "\n\n".join(parts)}]


def rating(reply: str) -> int | None:
    """The rating, where the last line holds it, the reply holds no other, and it is a whole number from 1 to 10."""
    found = RATING.findall(reply)
    lines = reply.strip().splitlines()
    if len(found) != 1 or not RATING.search(lines[-1]) or not re.fullmatch(r"10|[1-9]", found[0].strip()):
        return None
    return int(found[0])
