"""Answers that can be read: the questions whose outcome changed from one stage to the next, as a page of its own."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from hermes3.page.shell import render
from hermes3.report.stages import Row
from hermes3.results.lm_eval import Evaluation

TEMPLATE = Path(__file__).with_name("answers.html.jinja")
MOST = 100  # questions of a row and step, those that changed most: Table 5's rows at three stages make some 10 MB
PROMPT, ANSWER = 1_500, 2_000  # characters: the end of a prompt, whose examples come first, and the start of an answer


def changed(stages: list[Evaluation], rows: list[Row]) -> list[dict[str, Any]]:
    """Per row and step: how many questions `gained` and `lost`, and the first `MOST` of them with both answers.

    A row or step that cannot be compared, or whose stages have no samples, is left out, as the report says of it.
    """
    steps = []
    for place, (before, after) in enumerate(pairwise(stages)):
        for row in rows:
            if row["comparisons"][place]["mark"] == "not comparable":
                continue
            moves = [
                (after.scores[key].outcomes[doc] - outcome, task, doc)
                for task in row["tasks"]
                if (key := (task, row["metric"], row["filter"])) in before.scores and key in after.scores
                for doc, outcome in (before.scores[key].outcomes or {}).items()
                if doc in (after.scores[key].outcomes or {}) and after.scores[key].outcomes[doc] != outcome
            ]
            moves.sort(key=lambda move: (-abs(move[0]), move[1:]))
            counts = {"gained": sum(move[0] > 0 for move in moves), "lost": sum(move[0] < 0 for move in moves)}
            step = {"row": row["task_label"], "step": f"{before.name} → {after.name}", "changed": len(moves), **counts}
            if moves:
                steps.append(step | {"filter": row["filter"], "moves": moves[:MOST], "stages": (before, after)})
    _read(steps)
    return steps


def _read(steps: list[dict[str, Any]]) -> None:
    """Replace each step's `moves` by its `questions`, from the stages' samples; every file is read once."""
    wanted: dict[tuple[str, str, str], set[int]] = {}
    stages = {stage.name: stage for step in steps for stage in step["stages"]}
    for step in steps:
        for _, task, doc in step["moves"]:
            for stage in step["stages"]:
                wanted.setdefault((stage.name, task, step["filter"]), set()).add(doc)
    texts = {key: _samples(stages[key[0]], key[1], key[2], docs) for key, docs in wanted.items()}
    for step in steps:
        names = [stage.name for stage in step.pop("stages")]
        step["questions"] = []
        for move, task, doc in step.pop("moves"):
            sides = [texts[name, task, step["filter"]].get(doc) for name in names]
            if all(sides):
                question = {"id": f"{task}/{doc}", "change": round(move, 4), "prompt": sides[0]["prompt"]}
                step["questions"].append(question | {"answers": [side["answer"] for side in sides]})


def _samples(stage: Evaluation, task: str, filter_key: str, docs: set[int]) -> dict[int, dict[str, Any]]:
    """doc_id -> prompt, and the answer: text, or of multiple choice the options with their log-likelihoods."""
    name = task.partition(" (")[0]
    files = [
        path.with_name(f"samples_{name}_{path.stem.removeprefix('results_')}.jsonl") for path in stage.results_files
    ]
    found: dict[int, dict[str, Any]] = {}
    for line in next(path for path in files if path.is_file()).open("rb"):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            record = json.loads(line)  # NaN and Infinity
        if record["doc_id"] in docs and record.get("filter", filter_key) == filter_key:
            requests = list(record.get("arguments", {}).values())
            prompt = str(requests[0]["arg_0"]) if requests and isinstance(requests[0], dict) else ""
            left_out = len(prompt) - PROMPT
            prompt = f"[{left_out:,} characters left out] … {prompt[-PROMPT:]}" if left_out > 0 else prompt
            found[record["doc_id"]] = {"prompt": prompt, "answer": _answer(requests, record.get("resps") or [])}
    return found


def _answer(requests: list[dict[str, Any]], responses: list[Any]) -> str | list[list[Any]]:
    first = responses[0][0] if responses and responses[0] else ""
    if isinstance(first, str):
        return first if len(first) <= ANSWER else f"{first[:ANSWER]} … [{len(first) - ANSWER:,} characters left out]"
    pairs = zip(requests, responses, strict=False)
    return [[str(request.get("arg_1", "")), round(float(response[0][0]), 2)] for request, response in pairs]


def page(title: str, steps: list[dict[str, Any]]) -> str:
    """The page of `changed`: one file that needs no server; its data cannot end the script that holds them."""
    from markupsafe import Markup

    data = json.dumps(steps, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", " ").replace("\u2029", " ")
    return render(TEMPLATE, {"title": title, "data": Markup(data), "steps": steps}, {}, {})
