"""Synthetic inputs of the report in the tools' own layouts: lm-eval's results, the trainer's log, a mix's manifest."""

import json
import math
from pathlib import Path

import yaml
from pytest import MonkeyPatch

from hermes3.report import build
from hermes3.results.lm_eval import Evaluation
from hermes3.results.score import measure

DATE = "2025-01-02T03-04-05.678901"
HEX = "0123456789abcdef" * 4
CASES = yaml.safe_load(Path(__file__).with_name("report_cases.yml").read_text(encoding="utf-8"))
DATA = yaml.safe_load(Path(__file__).with_suffix(".yml").read_text(encoding="utf-8").replace("{hash}", HEX))


def write_scores(
    folder: Path,
    tasks: dict[str, dict[str, int]],
    n: int = 100,
    date: str = DATE,
    salt: str = "",
    shots: int = 0,
    **more,
) -> Path:
    """An lm-eval 0.4.11 output folder: results_<date>.json and samples_<task>_<date>.jsonl under the model's name.
    `tasks`: task -> metric -> how many of `n` are right. `more` replaces facts of the results file."""
    model = folder / "outputs__model"
    model.mkdir(parents=True, exist_ok=True)
    results = {}
    for task, metrics in tasks.items():
        results[task] = {"alias": task}
        for metric, right in metrics.items():
            results[task] |= {f"{metric},none": right / n, f"{metric}_stderr,none": 0.01}
        samples = [
            {"doc_id": doc, "doc": {}, "filter": "none", "metrics": list(metrics), "doc_hash": f"{task}{doc}{salt}"}
            | {metric: float(doc < right) for metric, right in metrics.items()}
            for doc in range(n)
        ]
        lines = "".join(json.dumps(sample) + "\n" for sample in samples)
        (model / f"samples_{task}_{date}.jsonl").write_text(lines)
    facts = {"results": results, "versions": dict.fromkeys(tasks, 1), "n-shot": dict.fromkeys(tasks, shots)}
    facts["higher_is_better"] = {task: dict.fromkeys(metrics, True) for task, metrics in tasks.items()}
    facts["n-samples"] = {task: {"original": n, "effective": n} for task in tasks}
    (model / f"results_{date}.json").write_text(json.dumps(facts | DATA["results"] | more))
    return folder


def write_run(folder: Path, history: list[dict], checkpoint: str = "") -> Path:
    target = folder / checkpoint
    target.mkdir(parents=True)
    (target / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return folder


def sft_history(steps: int = 60) -> list[dict]:
    return [
        {"step": s, "epoch": 2 * s / steps, "loss": 1 + 8 * math.exp(-s / 12), "learning_rate": 1e-3, "grad_norm": 1.0}
        for s in range(1, steps + 1)
    ]


def dpo_history(first_loss: float = 0.693147, steps: int = 40) -> list[dict]:
    return [
        {"step": s, "epoch": 2 * s / steps, "loss": first_loss - 0.005 * (s - 1), "learning_rate": 1e-4}
        | {"grad_norm": 1.0, "rewards/accuracies": 0.5 + s / 100, "rewards/margins": s / 80}
        for s in range(1, steps + 1)
    ]


def write_mix(folder: Path, kind: str) -> Path:
    manifest = dict(DATA["manifest"]) | {"name": f"tiny_{kind}", "kind": kind}
    names = ("general_instructions", "math") if kind == "sft" else ("alignment", "style")
    manifest["sources"] = [manifest.pop("source") | {"category": names[0]}]
    manifest["categories"] = dict(zip(names, manifest.pop("counts"), strict=True))
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_report(out: Path, scores: dict, runs: dict | None = None, suites: tuple = (), **more) -> dict:
    """The report without the suites' names for tasks, which are another file's; one folder a stage."""
    folders = {name: [given] if isinstance(given, Path) else given for name, given in scores.items()}
    with MonkeyPatch.context() as patch:
        patch.setattr(build, "all_suites", lambda: list(suites))
        return build.write_report(out, runs=runs or {}, scores=folders, **{"mixes": [], "commands": []} | more)


def first(right: int, n: int = 1000) -> list[int]:
    """Outcomes of `n` documents, the first of which are right."""
    return [int(doc < right) for doc in range(n)]


def evaluation(outcomes: dict[str, list[float]], name: str = "SFT", shots: int = 0, asked: int = 0) -> Evaluation:
    """An evaluation of tasks with these outcomes; `asked`: questions of each task, where only a part was asked."""
    one = Evaluation(name, Path("out"))
    one.harness.update(dict.fromkeys(("lm_eval_version", "chat_template_sha", "system_instruction_sha"), "x"))
    for task, values in outcomes.items():
        by_doc = dict(enumerate(values))
        names = [(task, doc) for doc in by_doc]
        scale = 100 if set(values) <= {0, 1} or max(values) <= 1 else 1
        one.scores[task, "acc", "none"] = measure([by_doc], [names], True, scale)
        one.docs[task] = {doc: (f"{task}{doc}", "", "") for doc in by_doc}
        one.tasks[task] = {"version": 1, "n_shot": shots, "samples": len(values), "questions": asked or len(values)}
        one.tasks[task] |= {"chat_template": "x", "has_samples": True}
    return one
