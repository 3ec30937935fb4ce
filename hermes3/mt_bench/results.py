"""Results in the form of lm-eval 0.4.11, so that whatever reads its results reads these."""

import importlib.metadata
import json
import statistics
from collections import defaultdict
from datetime import datetime
from math import sqrt
from pathlib import Path
from typing import Any

from hermes3.files import sha256, write_text
from hermes3.mt_bench.judge import VERSION
from hermes3.mt_bench.questions import Question
from hermes3.mt_bench.run import Bench, Record, key

TASK = "mt_bench"
METRICS = ("score", "turn_1", "turn_2")


def write(
    bench: Bench,
    setting: Record,
    questions: list[Question],
    of_file: int,
    answers: dict[int, Record],
    ratings: dict[int, Record],
) -> tuple[Path, Record]:
    """Write `results_<date>.json` and `samples_mt_bench_<date>.jsonl` below `bench.out`; the first, and what it holds.

    A question's score is the mean of its two ratings. One that lacks a rating is no part of any mean; it is listed.
    `setting`: what the answers depend on; `of_file`: questions in the file. Where the newest results hold all this
    already, nothing is written.
    """
    out, judge = bench.out, {"model": bench.judge_model, "url": bench.judge_url}
    model = str(Path(bench.model)) if Path(bench.model).is_dir() else bench.model
    rated = [one for one in questions if None not in ratings[one.question_id]["ratings"]]
    if len(rated) < 2:
        raise ValueError(f"{out}: {len(rated)} of {len(questions)} questions have both ratings; no mean of that")
    samples = [_sample(i, one, answers, ratings) for i, one in enumerate(questions) if one in rated]
    values = {metric: [sample[metric] for sample in samples] for metric in METRICS}
    scores: dict[str, Any] = {"alias": TASK}
    for metric in METRICS:
        scores[f"{metric},none"] = statistics.mean(values[metric])
        scores[f"{metric}_stderr,none"] = statistics.stdev(values[metric]) / sqrt(len(rated))
    done = key([answers[one.question_id]["key"] for one in questions], [ratings[one.question_id] for one in questions])
    for path in sorted(out.rglob("results_*.json"))[-1:]:
        before = json.loads(path.read_text(encoding="utf-8"))
        if before.get(TASK, {}).get("key") == done:
            return path, before
    now = datetime.now()
    template = Path(model) / "chat_template.jinja"
    version = f"{VERSION}, judged by {judge['model']}"  # of two judges, scores are not compared
    results = {
        "results": {TASK: scores},
        "group_subtasks": {TASK: []},
        "configs": {TASK: {"task": TASK, "metadata": {"version": version, "judge": judge}}},
        "versions": {TASK: version},
        "n-shot": {TASK: 0},
        "higher_is_better": {TASK: dict.fromkeys(METRICS, True)},
        "n-samples": {TASK: {"original": of_file, "effective": len(rated)}},
        "config": {"model": setting["backend"], "model_args": {"pretrained": model}, "limit": bench.limit},
        "date": now.timestamp(),
        "lm_eval_version": importlib.metadata.version("lm_eval"),  # whose form this is
        "chat_template_sha": sha256(template) if template.is_file() else None,
        "system_instruction_sha": None,
        "model_name": model,
        TASK: {
            "key": done,
            "judge": judge,
            "answered_by": setting | {"endpoint": bench.endpoint},
            "interval": _interval(values["score"]),
            "categories": _categories(rated, values["score"]),
            "unrated": [one.question_id for one in questions if one not in rated],
            "cut_answers": sum(sum(answers[one.question_id]["cut"]) for one in questions),
        },
    }
    date = now.isoformat().replace(":", "-")
    folder = out / model.strip("/").replace("/", "__")
    lines = [json.dumps(sample, ensure_ascii=False) for sample in samples]
    write_text(folder / f"samples_{TASK}_{date}.jsonl", "\n".join(lines) + "\n")
    path = folder / f"results_{date}.json"
    write_text(path, json.dumps(results, ensure_ascii=False, indent=2) + "\n")
    return path, results


def summary(results: Record) -> str:
    """Score, interval, turns, categories, and what is no part of them."""
    scores, more = results["results"][TASK], results[TASK]
    n = results["n-samples"][TASK]["effective"]
    low, high = more["interval"]["low"], more["interval"]["high"]
    said = [
        f"MT-Bench {scores['score,none']:.2f} ({low:.2f} to {high:.2f}), {n} questions, judge {more['judge']['model']}",
        f"turn 1 {scores['turn_1,none']:.2f}, turn 2 {scores['turn_2,none']:.2f}",
        ", ".join(f"{name} {mean:.2f}" for name, mean in more["categories"].items()),
    ]
    if more["unrated"]:
        said.append(f"left out, as the judge gave no rating: question {', '.join(map(str, more['unrated']))}")
    if more["cut_answers"]:
        said.append(f"{more['cut_answers']} answers were cut at the limit of tokens")
    return "\n".join(said)


def _sample(number: int, question: Question, answers: dict[int, Record], ratings: dict[int, Record]) -> Record:
    answer, rating = answers[question.question_id], ratings[question.question_id]
    first, second = rating["ratings"]
    doc = question.model_dump()
    return {
        "doc_id": number,
        "doc": doc,
        "target": "",
        "arguments": {"gen_args_0": {"arg_0": question.turns[0]}, "gen_args_1": {"arg_0": question.turns[1]}},
        "resps": [answer["answers"]],
        "filtered_resps": answer["answers"],
        "filter": "none",
        "metrics": list(METRICS),
        "doc_hash": key(doc),
        "prompt_hash": key(question.turns),
        "target_hash": key(""),
        "score": (first + second) / 2,
        "turn_1": first,
        "turn_2": second,
        "judge_replies": rating["replies"],
    }


def _interval(values: list[float]) -> dict[str, Any]:
    from hermes3.stats import mean_of

    low, high = mean_of(values)
    return {"level": 0.95, "method": "Student's t over questions", "low": low, "high": high}


def _categories(questions: list[Question], values: list[float]) -> dict[str, float]:
    of: dict[str, list[float]] = defaultdict(list)
    for question, value in zip(questions, values, strict=True):
        of[question.category].append(value)
    return {category: statistics.mean(scores) for category, scores in of.items()}
