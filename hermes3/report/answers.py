"""Answers that can be read: the questions whose outcome changed from one stage to the next, as a page of its own."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from hermes3.report.tables import Row
from hermes3.results.groups import Group
from hermes3.results.lm_eval import Evaluation
from hermes3.results.score import ScoreKey

TEMPLATE = Path(__file__).with_name("answers.html.jinja")
MOST = 100  # questions of a row and step, those that changed most: Table 5's rows at three stages make some 10 MB
PROMPT, ANSWER = 1_500, 2_000  # characters: the end of a prompt, whose examples come first, and the start of an answer
DOC = re.compile(rb'\{"doc_id": (\d+),')  # as lm-eval begins a line, so that most lines need not be parsed


def changed(stages: list[Evaluation], groups: list[Group], rows: list[Row]) -> list[dict[str, Any]]:
    """Per comparable row and step: how many questions `gained` and `lost`, and the first `MOST` with both answers."""
    steps = []
    for place, (before, after) in enumerate(pairwise(stages)):
        for group, row in zip(groups, rows, strict=True):
            if row["comparisons"][place]["mark"] == "not comparable" or not (moves := _moves(before, after, group)):
                continue
            old = _texts(before, {(was, doc) for _, was, _, doc in moves[:MOST]})
            new = _texts(after, {(now, doc) for _, _, now, doc in moves[:MOST]})
            questions = [
                {"id": f"{now[0]}/{doc}", "change": round(change, 4), "prompt": old[was, doc][0]}
                | {"answers": [old[was, doc][1], new[now, doc][1]], "target": old[was, doc][2]}
                for change, was, now, doc in moves[:MOST]
            ]
            gained, step = sum(change > 0 for change, *_ in moves), f"{before.name} → {after.name}"
            counts = {"changed": len(moves), "gained": gained, "lost": len(moves) - gained}
            steps.append({"row": row["task_label"], "step": step, **counts, "questions": questions})
    return steps


def _moves(before: Evaluation, after: Evaluation, group: Group) -> list[tuple[float, ScoreKey, ScoreKey, int]]:
    """(by how much it became better, task's key before and after, doc_id) of what changed, the largest change first."""
    moves, tasks = [], {}
    for was, now in zip(before.keys(group), after.keys(group), strict=True):
        tasks.setdefault(now[0], (was, now))  # of IFEval's two metrics, whole prompts
    for was, now in tasks.values():
        old, new = before.scores.get(was), after.scores.get(now)
        if old and new and old.outcomes and new.outcomes:
            sign = -1 if new.higher_is_better is False else 1
            both = ((doc, new.outcomes[doc] - one) for doc, one in old.outcomes.items() if doc in new.outcomes)
            moves += [(sign * change, was, now, doc) for doc, change in both if change]
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
            record = json.loads(line)
            if record["doc_id"] in docs and record.get("filter", key[2]) == key[2]:
                docs.discard(record["doc_id"])
                texts[key, record["doc_id"]] = _text(record)
    return texts


def _text(record: dict[str, Any]) -> tuple[str, str | list[list[Any]], str]:
    requests, responses = list((record.get("arguments") or {}).values()), record.get("resps") or [[""]]
    prompt, target = str(requests[0]["arg_0"]) if requests else "", str(record.get("target", ""))
    answer = responses[0][0]
    if len(prompt) > PROMPT:
        prompt = f"[{len(prompt) - PROMPT:,} characters left out] … {prompt[-PROMPT:]}"
    if not isinstance(answer, str):
        pairs = zip(requests, responses, strict=False)
        options = [[str(request.get("arg_1", "")), round(float(of[0][0]), 2)] for request, of in pairs]
        right = target.isdigit() and int(target) < len(options)
        return prompt, options, options[int(target)][0] if right else target
    if len(answer) > ANSWER:
        answer = f"{answer[:ANSWER]} … [{len(answer) - ANSWER:,} characters left out]"
    return prompt, answer, target[:ANSWER]
