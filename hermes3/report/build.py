"""The report: mixes, training runs and scores in one dict, written as a page and as JSON."""

import json
from pathlib import Path
from typing import Any

from hermes3.files import ROOT, UserError, commit, sha256, write_text
from hermes3.mix import manifest as manifests
from hermes3.page.charts import mix_chart
from hermes3.page.shell import render
from hermes3.page.text import FILTERS
from hermes3.report import answers, charts, tables, words
from hermes3.report.runs import gpu_hours_beside_plan, read_run, read_selection, recipe_of
from hermes3.results import suite
from hermes3.results.groups import PAPER_SUITE, groups_of, pool
from hermes3.results.lm_eval import Evaluation, read_evaluation
from hermes3.results.published import load

PAGE, SUMMARY = (Path(__file__).with_name(name) for name in ("page.html.jinja", "summary.txt.jinja"))
LOCK = ROOT / "requirements.txt"
MIX_KEYS = ("name", "kind", "seed", "sequence_len", "tokenizer", "versions", "sources", "total")


def write_report(
    out: Path,
    mixes: list[Path],
    runs: dict[str, Path],  # name -> output folder
    scores: dict[str, list[Path]],  # stage -> lm-eval output folders, one per seed, in the order of the chain
    commands: list[str],
    size: str | None = None,  # of the paper's model, by default as the runs' recipes
) -> dict[str, Any]:
    """Write `out`/index.html, report.json and summary.txt, all from one dict, which is returned, and answers.html.
    The same inputs give the same bytes."""
    if not scores:
        raise UserError("no stage given; name at least one lm-eval output folder with --scores NAME=FOLDER")
    run_data, mix_data = [read_run(*run) for run in runs.items()], [read_mix(folder) for folder in mixes]
    recipes = {name: recipe_of(folder) for name, folder in runs.items()}
    seeds = {
        name: [read_evaluation(f"{name}, seed {n}" if n > 1 else name, folder) for n, folder in enumerate(folders, 1)]
        for name, folders in scores.items()
    }
    stages, suites = [pool(name, of_stage) for name, of_stage in seeds.items()], all_suites()
    groups = tables.rows_of(stages, groups_of(stages, suites))
    trained = {name for one in suites for name, group in one.groups.items() if not group.selects}
    table = tables.score_table(stages, groups, trained)
    alignment = [row for row in table["rows"] if row["suite"] == tables.ALIGNMENT]
    sizes = {size} if size else {path.stem.partition("_")[0] for path in recipes.values() if path}
    paper = tables.compare_with_paper(stages, groups, load("table5"), sizes, suite.load(PAPER_SUITE).margin / 100)
    report: dict[str, Any] = {"title": "Hermes 3 recipes: " + " → ".join(scores), "commands": commands}
    report |= {"scores": table | {"alignment": alignment}, "paper": paper, "dpo": tables.what_dpo_changed(table, sizes)}
    report["seeds"] = [tables.seed_table(name, of, groups) for name, of in seeds.items() if len(of) > 1]
    report["selections"] = [kept for run in runs.items() if (kept := read_selection(*run))]
    report["costs"] = [gpu_hours_beside_plan(*run, recipes[run[0]]) for run in runs.items()]
    report |= {"runs": run_data, "mixes": mix_data, "versions": _versions(mix_data, stages)}
    report |= {"repository": repository(), "evaluations": [_facts(one) for of in seeds.values() for one in of]}
    named = [(run, at and str(at), at and sha256(ROOT / at)) for run, at in recipes.items()]
    report["recipes"] = [dict(zip(("run", "path", "sha256"), one, strict=True)) for one in named]
    report["verdict"] = words.verdict(report)
    steps = answers.changed(stages, groups, table["rows"])
    report["answers"] = [{key: of for key, of in step.items() if key != "questions"} for step in steps]
    drawn = {f"mix {mix['name']}": mix_chart(mix) for mix in mix_data if mix["kind"] == "sft"}
    drawn |= {"scores": charts.scores_chart(table), "paper": charts.paper_chart(paper) if "rows" in paper else ""}
    drawn["training"] = charts.training_chart(run_data) if runs else ""
    facts = report | {"steps": steps, "smoke": words.smoke(alignment), "out": out}
    page = render(PAGE, facts, drawn, FILTERS)
    write_text(out / "answers.html", render(answers.TEMPLATE, facts, {}, {}))
    write_text(out / "report.json", json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(out / "summary.txt", render(SUMMARY, facts, {}, FILTERS).replace("\u00a0", " ").replace("\u2009", ""))
    write_text(out / "index.html", page)
    return report


def read_mix(folder: Path) -> dict[str, Any]:
    """What the report shows of the mix in `folder`. `UserError` when its manifest is missing or it holds no tokens."""
    manifest = manifests.read(folder)
    if not manifest["total"]["tokens"]:
        raise UserError(f"{folder}: the mix holds no tokens; see its rejects")
    mix = {key: manifest[key] for key in MIX_KEYS} | {"categories": manifests.composition(manifest)}
    mix |= {"manifest_sha256": sha256(folder / "manifest.json"), "output_sha256": manifest["output"]["sha256"]}
    rejects = [(*key.split("/", 1), count) for key, count in manifest["rejects"].items()]
    rejects = [dict(zip(("stage", "reason", "count"), one, strict=True)) for one in rejects]
    return mix | {"folder": str(folder), "rejects": rejects}


def repository(folder: Path = ROOT) -> dict[str, Any]:
    """`commit` (None outside a repository), whether tracked files differ from it, and the lock's sha256."""
    at = commit(folder) or ""
    lock = {"path": LOCK.name, "sha256": sha256(LOCK) if LOCK.is_file() else None}
    return {"commit": at.removesuffix("-dirty") or None, "changed": at.endswith("-dirty"), "lock": lock}


def all_suites() -> list[suite.Suite]:
    """All of eval/suites: the paper's first, so that its groups give their names to what several suites measure."""
    others = sorted(path.stem for path in suite.SUITES.glob("*.yml"))
    return [suite.load(name) for name in dict.fromkeys((PAPER_SUITE, "epoch_selection", *others))]


def _facts(one: Evaluation) -> dict[str, Any]:
    """What an evaluation's scores depend on. `part`: tasks, as one results file may have a limit and another none."""
    files = [str(path.relative_to(one.folder)) for path in one.results_files]
    part = sorted(task for task, of in one.tasks.items() if of["samples"] < of["questions"])
    facts = {"stage": one.name, "folder": str(one.folder), "files": files, "tasks": one.tasks, "part": part}
    return facts | one.harness | {"skipped": one.skipped}


def _versions(mixes: list[dict[str, Any]], stages: list[Evaluation]) -> list[dict[str, Any]]:
    """Package versions with who recorded them: two rows of one package mean that it changed on the way."""
    pairs = [(of, f"mix {mix['name']}") for mix in mixes for of in mix["versions"].items()]
    for name in ("lm_eval", "transformers"):
        pairs += [((name, one.harness[f"{name}_version"]), f"scores of {one.name}") for one in stages]
    known = sorted({of for of, _ in pairs if of[1]})
    return [{"package": of[0], "version": of[1], "recorded_by": [by for o, by in pairs if o == of]} for of in known]
