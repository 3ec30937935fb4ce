"""Answers that can be read: the questions whose outcome changed from one stage to the next, as a page of its own."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from hermes3.page.shell import render
from hermes3.report.stages import Row
from hermes3.results.groups import Group
from hermes3.results.lm_eval import Evaluation, ScoreKey

TEMPLATE = Path(__file__).with_name("answers.html.jinja")
MOST = 100  # questions of a row and step, those that changed most: Table 5's rows at three stages make some 10 MB
PROMPT, ANSWER = 1_500, 2_000  # characters: the end of a prompt, whose examples come first, and the start of an answer
DOC = re.compile(rb'\{"doc_id": (\d+),')  # as lm-eval begins a line, so that most lines need not be parsed
Keys = tuple[ScoreKey, ScoreKey]  # one task before and after: a task under two protocols has a name for each
Move = tuple[float, Keys, int]  # by how much the outcome of a task's document rose


def changed(stages: list[Evaluation], groups: list[Group], rows: list[Row]) -> list[dict[str, Any]]:
    """Per row and step: how many questions `gained` and `lost`, and the first `MOST` of them with both answers.

    `groups` are those of `rows`, in their order. Of a stage with several seeds the answers are the first seed's. A row
    that cannot be compared, or has no samples, has no step here; the report says why.
    """
    steps = []
    for place, pair in enumerate(pairwise(stages)):
        for group, row in zip(groups, rows, strict=True):
            moves = [] if row["comparisons"][place]["mark"] == "not comparable" else _moves(*pair, group)
            if not moves:
                continue
            kept = [(move, *keys, doc) for move, keys, doc in moves[:MOST]]
            before = _texts(pair[0], {(key, doc) for _, key, _, doc in kept})
            after = _texts(pair[1], {(key, doc) for _, _, key, doc in kept})
            step = {"row": row["task_label"], "step": " → ".join(stage.name for stage in pair), "changed": len(moves)}
            step |= {"gained": sum(move > 0 for move, *_ in moves), "lost": sum(move < 0 for move, *_ in moves)}
            step["questions"] = [
                {"id": f"{new[0]}/{doc}", "change": round(move, 4), "prompt": before[old, doc][0]}
                | {"answers": [before[old, doc][1], after[new, doc][1]], "target": before[old, doc][2]}
                for move, old, new, doc in kept
                if (old, doc) in before and (new, doc) in after
            ]
            steps.append(step)
    return steps


def _moves(before: Evaluation, after: Evaluation, group: Group) -> list[Move]:
    """The documents of a group whose outcome changed, the largest change first; up is better."""
    moves: list[Move] = []
    tasks = {}
    for keys in zip(before.keys(group), after.keys(group), strict=True):
        tasks.setdefault(keys[1][0], keys)  # of IFEval's two metrics, whole prompts
    for keys in tasks.values():
        old, new = before.scores.get(keys[0]), after.scores.get(keys[1])
        if old and new and old.outcomes and new.outcomes:
            sign = -1 if new.higher_is_better is False else 1
            both = ((sign * (new.outcomes[doc] - was), doc) for doc, was in old.outcomes.items() if doc in new.outcomes)
            moves += [(move, keys, doc) for move, doc in both if move]
    return sorted(moves, key=lambda move: (-abs(move[0]), move[1:]))


def _texts(stage: Evaluation, wanted: set[tuple[ScoreKey, int]]) -> dict[tuple[ScoreKey, int], tuple[str, Any, str]]:
    """(task's key, doc_id) -> prompt, answer (text, or each option with its log-likelihood), and what is right."""
    texts = {}
    for key in {key for key, _ in wanted}:
        docs = {doc for of, doc in wanted if of == key}
        for line in stage.samples_files[key[0]].open("rb"):
            if not docs:  # most of the kept ones stand near the start of a long file
                break
            if (start := DOC.match(line)) and int(start[1]) not in docs:
                continue
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                record = json.loads(line)  # NaN and Infinity
            if record["doc_id"] in docs and record.get("filter", key[2]) == key[2]:
                docs.discard(record["doc_id"])
                texts[key, record["doc_id"]] = _text(record)
    return texts


def _text(record: dict[str, Any]) -> tuple[str, str | list[list[Any]], str]:
    requests, responses = list((record.get("arguments") or {}).values()), record.get("resps") or [[""]]
    prompt, answer = str(requests[0]["arg_0"]) if requests else "", responses[0][0]
    if (more := len(prompt) - PROMPT) > 0:
        prompt = f"[{more:,} characters left out] … {prompt[-PROMPT:]}"
    if not isinstance(answer, str):
        pairs = zip(requests, responses, strict=False)
        options = [[str(request.get("arg_1", "")), round(float(of[0][0]), 2)] for request, of in pairs]
        right = str(record.get("target", ""))
        return prompt, options, options[int(right)][0] if right.isdigit() and int(right) < len(options) else right
    if (more := len(answer) - ANSWER) > 0:
        answer = f"{answer[:ANSWER]} … [{more:,} characters left out]"
    return prompt, answer, str(record.get("target", ""))[:ANSWER]


def page(title: str, steps: list[dict[str, Any]]) -> str:
    """The page of `changed`: one file that needs no server. Its data cannot end the script that holds them."""
    from markupsafe import Markup

    data = Markup(json.dumps(steps, ensure_ascii=False).replace("<", "\\u003c"))
    return render(TEMPLATE, {"title": title, "data": data, "steps": steps}, {}, {})
