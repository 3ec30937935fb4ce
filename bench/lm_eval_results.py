"""A run of the paper's suite in lm-eval's own files, made from nothing: the real tasks, sizes and prompt lengths.

Question counts are those of the tasks that lm-eval 0.4.11 downloads. Abilities are drawn, so scores mean nothing.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

AGIEVAL = {"aqua_rat": 254, "logiqa_en": 651, "lsat_ar": 230, "lsat_lr": 510, "lsat_rc": 269, "sat_en": 206}
AGIEVAL |= {"sat_en_without_passage": 206, "sat_math": 220}
BBH = """
boolean_expressions causal_judgement date_understanding disambiguation_qa formal_fallacies geometric_shapes hyperbaton
logical_deduction_five_objects logical_deduction_seven_objects logical_deduction_three_objects movie_recommendation
navigate object_counting penguins_in_a_table reasoning_about_colored_objects ruin_names
salient_translation_error_detection snarks sports_understanding temporal_sequences
tracking_shuffled_objects_five_objects tracking_shuffled_objects_seven_objects
tracking_shuffled_objects_three_objects web_of_lies
"""
BBH_SIZES = {"causal_judgement": 187, "penguins_in_a_table": 146, "snarks": 178}
MATH = {"algebra": 307, "counting_and_prob": 123, "geometry": 132, "intermediate_algebra": 280, "num_theory": 154}
MATH |= {"prealgebra": 193, "precalculus": 135}


@dataclass(frozen=True)
class Task:
    """`prompt`: characters of one rendered prompt; `requests`: prompts a question, one a choice; `right`: its level."""

    name: str
    n: int
    metrics: tuple[str, ...]
    shots: int
    requests: int
    prompt: int
    right: float


def mmlu_subjects() -> list[str]:
    """The 57 tasks `mmlu_*` of the installed lm-eval."""
    import lm_eval

    folder = Path(lm_eval.__file__).parent / "tasks/mmlu/default"
    return sorted(path.stem for path in folder.glob("mmlu_*.yaml"))


def paper_suite() -> Iterator[Task]:
    """The tasks of Table 5 and their sizes; 59,476 questions."""
    for name, n in AGIEVAL.items():
        yield Task(f"agieval_{name}", n, ("acc", "acc_norm"), 0, 5, 900, 0.45)
    yield Task("arc_challenge", 1172, ("acc", "acc_norm"), 0, 4, 250, 0.58)
    yield Task("arc_easy", 2376, ("acc", "acc_norm"), 0, 4, 220, 0.80)
    yield Task("boolq", 3270, ("acc",), 0, 2, 900, 0.85)
    for name in BBH.split():
        yield Task(f"leaderboard_bbh_{name}", BBH_SIZES.get(name, 250), ("acc_norm",), 3, 5, 2400, 0.53)
    for name, n in {"diamond": 198, "extended": 546, "main": 448}.items():
        yield Task(f"leaderboard_gpqa_{name}", n, ("acc_norm",), 0, 4, 900, 0.30)
    yield Task("hellaswag", 10042, ("acc", "acc_norm"), 10, 4, 4500, 0.83)
    yield Task("leaderboard_ifeval", 541, ("prompt_level_strict_acc", "inst_level_strict_acc"), 0, 1, 400, 0.62)
    for name, n in MATH.items():
        yield Task(f"leaderboard_math_{name}_hard", n, ("exact_match", "exact_match_original"), 4, 1, 3500, 0.08)
    subjects = mmlu_subjects()
    for place, name in enumerate(subjects):
        n = 14042 // len(subjects) + (place < 14042 % len(subjects))
        yield Task(name, n, ("acc",), 5, 4, 2800, 0.65)
    yield Task("leaderboard_mmlu_pro", 12032, ("acc",), 5, 10, 4200, 0.32)
    for name in ("murder_mysteries", "object_placements", "team_allocation"):
        n = {"murder_mysteries": 250, "object_placements": 256, "team_allocation": 250}[name]
        yield Task(f"leaderboard_musr_{name}", n, ("acc_norm",), 0, 3, 5500, 0.43)
    yield Task("openbookqa", 500, ("acc", "acc_norm"), 0, 4, 150, 0.47)
    yield Task("piqa", 1838, ("acc", "acc_norm"), 0, 2, 150, 0.80)
    yield Task("truthfulqa_mc2", 817, ("acc",), 0, 7, 900, 0.58)
    yield Task("winogrande", 1267, ("acc",), 5, 2, 700, 0.77)


def subtasks() -> dict[str, list[str]]:
    """lm-eval's groups that the suite names, and their tasks."""
    found = {"mmlu": mmlu_subjects()}
    names = [task.name for task in paper_suite()]
    for group in ("bbh", "gpqa", "math", "musr"):
        key = "leaderboard_math_hard" if group == "math" else f"leaderboard_{group}"
        found[key] = [name for name in names if name.startswith(f"leaderboard_{group}_")]
    return found


def write(
    folder: Path, tasks: list[Task], *, gain: float = 0.0, seed: int = 0, small: bool = False, **facts: Any
) -> None:
    """One results file for each protocol, with samples, under `folder`; `facts` replace those of the results.

    A question's difficulty is the same at every call, so that stages are paired; `gain` is added to every level.
    `small` cuts prompts to 20 characters.
    """
    for shots, generated in sorted({(task.shots, task.requests == 1) for task in tasks}):
        date = f"2025-01-{shots + 1:02d}T03-04-0{5 + generated}.000000"
        model = folder / (f"{shots}_shot" if generated else f"{shots}_shot_plain") / "outputs__8b__model"
        model.mkdir(parents=True, exist_ok=True)
        chosen = [task for task in tasks if (task.shots, task.requests == 1) == (shots, generated)]
        results = {task.name: _samples(model, task, date, gain, seed, small) for task in chosen}
        counts = {task.name: {"original": task.n, "effective": task.n} for task in chosen}
        written = {
            "results": results,
            "group_subtasks": {group: names for group, names in subtasks().items() if set(names) <= set(results)},
            "configs": {},
            "versions": {task.name: 1.0 for task in chosen},
            "n-shot": {task.name: shots for task in chosen},
            "higher_is_better": {task.name: dict.fromkeys(task.metrics, True) for task in chosen},
            "n-samples": counts,
            "config": {
                "model": "hf",
                "model_args": {"pretrained": "outputs/8b/model", "dtype": "bfloat16"},
                "limit": None,
            },
            "model_name": "outputs/8b/model",
            "lm_eval_version": "0.4.11",
            "transformers_version": "5.16.1",
            "git_hash": "abc1234",
            "chat_template_sha": "e65354f6" * 8 if generated else None,
            "system_instruction_sha": None,
        } | facts
        (model / f"results_{date}.json").write_text(json.dumps(written, indent=2))


def _samples(model: Path, task: Task, date: str, gain: float, seed: int, small: bool) -> dict[str, Any]:
    level, noise = Random(task.name), Random(f"{task.name}{seed}{gain}")
    prompt = ("The quick brown fox jumps over the lazy dog. " * (task.prompt // 45 + 1))[: 20 if small else task.prompt]
    requests = {f"gen_args_{place}": {"arg_0": prompt, "arg_1": f" choice {place}"} for place in range(task.requests)}
    values: dict[str, list[Any]] = {metric: [] for metric in task.metrics}
    with (model / f"samples_{task.name}_{date}.jsonl").open("w") as file:
        for doc in range(task.n):
            hard = level.random()
            row = {metric: _value(task, metric, hard, task.right + gain, noise) for metric in task.metrics}
            for metric, value in row.items():
                values[metric].append(value)
            name = hashlib.sha256(f"{task.name}{doc}".encode()).hexdigest()
            record = {"doc_id": doc, "doc": {"question": prompt[:400]}, "target": "0", "arguments": requests}
            answers = [["-1.5", "False"]] * task.requests
            record |= {"resps": [[one] for one in answers], "filtered_resps": answers, "filter": "none"}
            record |= {"metrics": list(row), **dict.fromkeys(("doc_hash", "prompt_hash", "target_hash"), name)}
            file.write(json.dumps(record | row, ensure_ascii=False) + "\n")
    scores: dict[str, Any] = {"alias": task.name}
    for metric, given in values.items():
        flat = [one for value in given for one in (value if isinstance(value, list) else [value])]
        scores |= {f"{metric},none": sum(flat) / len(flat), f"{metric}_stderr,none": "N/A"}
    return scores


def _value(task: Task, metric: str, hard: float, right: float, noise: Random) -> Any:
    """Right where the question is easy enough; one question in five is a coin's throw at the model's level."""
    outcome = int((noise.random() if noise.random() < 0.2 else hard) < right)
    if task.name == "truthfulqa_mc2":
        return min(max(0.8 * right + 0.4 * (noise.random() - 0.5) + 0.2 * outcome, 0.0), 1.0)
    if metric == "inst_level_strict_acc":
        return [bool(outcome)] + [noise.random() < right for _ in range(noise.randrange(3))]
    return outcome


def main() -> None:
    """Write three stages of the suite (2.9 GB) into a folder, and report on them: seconds and peak memory."""
    import argparse
    import resource
    import time

    from hermes3.report.build import write_report

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="an empty folder, with 3 GB of space")
    folder = parser.parse_args().folder
    tasks = list(paper_suite())
    stages = {"base": -0.05, "SFT": 0.0, "SFT+DPO": 0.012}
    for seed, (stage, gain) in enumerate(stages.items()):
        write(folder / stage, tasks, gain=gain, seed=seed)
    size = sum(path.stat().st_size for path in folder.rglob("*.jsonl"))
    start, cpu = time.perf_counter(), time.process_time()
    write_report(folder / "report", [], {}, {stage: [folder / stage] for stage in stages}, [], "8b")
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    samples = len(stages) * sum(task.n for task in tasks)
    print(f"{samples:,} samples, {size / 1e9:.1f} GB: {seconds:.1f} s ({cpu:.1f} s of CPU), {peak / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
