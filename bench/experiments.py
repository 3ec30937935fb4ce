"""`make experiments`: what the paper leaves open, answered on the demo's model; bench/experiments.yml says what.

Each arm is trained with each seed and evaluated on the suite `tiny`, two at a time. What is done is not done again.
outputs/experiments/index.html has the answers: scores over all seeds with 95 % intervals, paired tests on the same
questions, loss, speed and memory; outputs/experiments/runs has each arm's record for the ledger (runs/). `--size 8b`
prints the launches that ask the same at full size, and their cost.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from hermes3.files import ROOT, read_yaml, sha256, write_text

OUT = Path("outputs/experiments")
PLAN = read_yaml(ROOT / "bench/experiments.yml")
ENV = os.environ | {"OMP_NUM_THREADS": "1", "AXOLOTL_DO_NOT_TRACK": "1"}


def logged(name: str, *command: object) -> None:
    """Run a command with its output in `OUT`/logs/`name`.log; SystemExit names that file if it fails."""
    log = OUT / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        if subprocess.run([str(word) for word in command], env=ENV, stdout=file, stderr=file).returncode:
            raise SystemExit(f"{name} failed: see {log}")


def recipe_of(arm: str, seed: int) -> Path:
    """The whole recipe of an arm and a seed, written to `OUT`/recipes: it can be launched by hand."""
    one, folder = PLAN["arms"][arm], OUT / f"{arm}_{seed}"
    recipe = read_yaml(Path(one["recipe"])) | {"seed": seed, "output_dir": str(folder), "wandb_name": folder.name}
    values = {"start": PLAN["start"], "seed": seed}
    for key, value in one.get("change", {}).items():
        recipe[key] = value.format(**values) if isinstance(value, str) else value
    recipe = {key: value for key, value in recipe.items() if value is not None or key == "datasets"}
    path = OUT / "recipes" / f"{folder.name}.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(recipe, sort_keys=False))
    return path


def run(arm: str, seed: int) -> None:
    """Train and evaluate, as far as that is not done."""
    name, path = f"{arm}_{seed}", recipe_of(arm, seed)
    folder, adapter = OUT / name, "adapter" in read_yaml(path)
    model = folder / "merged" if adapter else folder
    if not (model / "model.safetensors").is_file():
        print(f"{name}: train", flush=True)
        logged(name, "accelerate", "launch", "-m", "axolotl.cli.train", path)
        if adapter:
            logged(name, "axolotl", "merge-lora", path)
    print(f"{name}: evaluate", flush=True)
    logged(name, "hermes3", "eval", model, "--suite", "tiny", "--out", OUT / "eval" / name)


def answer(question: str, before: str, after: str) -> str:
    """One question as Markdown: what was trained, its cost, and the scores of both arms over all seeds."""
    from hermes3.report.build import write_report
    from hermes3.report.runs import gpu_hours, read_log, read_run

    seeds, arms = PLAN["seeds"], (before, after)
    runs = {arm: [read_run(arm, OUT / f"{arm}_{seed}") for seed in seeds] for arm in arms}
    evaluations = {arm: [OUT / "eval" / f"{arm}_{seed}" for seed in seeds] for arm in arms}
    report = write_report(OUT / f"{before}_{after}", [], {}, evaluations, [])
    lines = [f"## {question}", *(f"- **{arm}**: {PLAN['arms'][arm]['text']}" for arm in arms), ""]
    lines += ["| | minutes of training | last loss | tokens/s | memory, GB |", "|---|---:|---:|---:|---:|"]
    for arm in arms:
        minutes = [60 * (gpu_hours(read_log(OUT / f"{arm}_{seed}")[1]) or 0) for seed in seeds]
        columns = [minutes, [one["last_loss"] for one in runs[arm]]]
        columns += [
            [one["performance"][key] for one in runs[arm]] for key in ("tokens_per_second_per_gpu", "memory_gb")
        ]
        lines.append(f"| {arm} | " + " | ".join(map(spread, columns)) + " |")
    lines += ["", f"| score, % | {before} | {after} | difference | p (Holm) | |", "|---|---:|---:|---:|---:|---|"]
    for row in report["scores"]["rows"]:
        cells = [interval(row["scores"][arm], row["scale"]) for arm in arms]
        pair = row["comparisons"][0]
        tested = "p_holm" in pair
        cells += [interval(pair | {"value": pair["change"]}, row["scale"]) if tested else "–"]
        cells += [f"{pair['p_holm']:.3g}" if tested else "–", pair["mark"]]
        lines.append(f"| {row['task_label']} | " + " | ".join(cells) + " |")
    for arm in arms:
        record(arm, report, runs[arm])
    return "\n".join(
        [*lines, "", f"Seeds {', '.join(map(str, seeds))}, pooled; each one: {before}_{after}/index.html.", ""]
    )


def record(arm: str, report: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """The arm's record for the ledger, over all seeds, where the code that trained is a commit's."""
    from hermes3.report import ledger
    from hermes3.report.runs import gpu_hours, read_log

    one, made_by, path = PLAN["arms"][arm], report["repository"], OUT / "runs" / f"experiment_{arm}.yml"
    if made_by["changed"]:
        return print(f"no record of {arm}: files are in no commit")
    recipe = read_yaml(Path(one["recipe"]))
    change = ", ".join(f"{key}: {value}" for key, value in one.get("change", {}).items()) or "nothing"
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    new = ledger.Record(
        title=f"Experiment {arm}: {one['text']}",
        date=date.today(),
        measured_by="hermes3-recipes",
        recipe=one["recipe"],
        recipe_sha256=sha256(Path(one["recipe"])),
        commit=made_by["commit"],
        lock_sha256=made_by["lock"]["sha256"],
        hardware="1 CPU process",
        gpus=0,
        mix=Path(recipe["datasets"][0]["path"]).parent.name,
        steps=runs[0]["steps"],
        tokens_per_second_per_gpu=round(mean(run["performance"]["tokens_per_second_per_gpu"] for run in runs), 1),
        gpu_hours=round(sum(gpu_hours(read_log(Path(run["folder"]))[1]) or 0 for run in runs), 3),
        scores=ledger.scores_of(report, arm),
        notes=[f"seeds {', '.join(map(str, PLAN['seeds']))}, pooled; hours of all", f"changed: {change}"],
    )
    ledger.add(path.stem, new, path.parent)


def spread(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    form = ",.0f" if mean(values) >= 100 else ".2f"
    return format(mean(values), form) + (f" ± {format(stdev(values), form)}" if len(values) > 1 else "")


def interval(score: dict[str, Any], scale: float) -> str:
    low, high = score.get("low"), score.get("high")
    return f"{scale * score['value']:.1f}" + (f" ({scale * low:.1f} to {scale * high:.1f})" if low is not None else "")


def full_size() -> None:
    """The launches that ask the same of the 8B, with `hermes3 plan`'s cost of each."""
    total = 0.0
    for path in dict.fromkeys(path for arm in PLAN["arms"].values() for path in arm.get("full_size", [])):
        done = subprocess.run(["hermes3", "plan", path, "--json"], capture_output=True, text=True, check=True)
        cost = json.loads(done.stdout)["cost"]
        total += cost["usd"]
        print(f"hermes3 launch {path}  # {cost['gpu_hours']:.0f} GPU-hours, {cost['usd']:,.0f} USD")
    print(
        f"# {total:,.0f} USD in all, without evaluation; flash-attention always keeps packed samples apart: no `leaky`"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=["tiny", "8b"], default="tiny")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those of the plan")
    options = parser.parse_args()
    if options.size == "8b":
        return full_size()
    PLAN["seeds"] = options.seeds or PLAN["seeds"]
    if not Path(PLAN["start"]).is_dir():
        sys.exit(f"{PLAN['start']}: not there; run make demo first")
    first = {one["after"] for one in PLAN["arms"].values() if "after" in one}
    for arms in (first, PLAN["arms"].keys() - first):  # those that others start from, then the others
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda pair: run(*pair), [(arm, seed) for arm in sorted(arms) for seed in PLAN["seeds"]]))
    from hermes3.page.shell import as_page

    text = "# What the paper leaves open, on the demo's model\n\n"
    text += "\n".join(answer(*question) for question in PLAN["questions"])
    text += "\n## What the small model cannot tell\n" + "\n".join(f"- {line}" for line in PLAN["cannot_tell"]) + "\n"
    write_text(OUT / "index.md", text)
    write_text(OUT / "index.html", as_page(text, "Experiments on the demo's model", {}))
    print(f"{text}\n{OUT}/index.html")


if __name__ == "__main__":
    main()
