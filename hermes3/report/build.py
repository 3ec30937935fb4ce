"""The report: mixes, training runs and scores in one dict, written as a page and as JSON."""

import json
from pathlib import Path
from typing import Any

from hermes3.files import ROOT, UserError, sha256, write_text
from hermes3.git import commit
from hermes3.mix.manifest import composition
from hermes3.mix.manifest import read as manifest_of
from hermes3.page import text
from hermes3.page.charts import mix_chart
from hermes3.page.shell import render
from hermes3.report import answers, charts, words
from hermes3.report.against_paper import compare_with_paper, what_dpo_changed
from hermes3.report.runs import gpu_hours_beside_plan, read_run, read_selection, recipe_of
from hermes3.report.stages import ALIGNMENT, rows_of, score_table, seed_table
from hermes3.results import suite
from hermes3.results.groups import PAPER_SUITE, groups_of, pool
from hermes3.results.lm_eval import Evaluation, read_evaluation

TEMPLATE = Path(__file__).with_name("page.html.jinja")
LOCK = ROOT / "requirements.txt"
MIX_KEYS = ("name", "kind", "seed", "sequence_len", "tokenizer", "versions", "sources", "total")


def write_report(
    out: Path,
    mixes: list[Path],
    runs: dict[str, Path],
    scores: dict[str, list[Path]],
    commands: list[str],
    size: str | None = None,
    suites: list[suite.Suite] | None = None,
) -> dict[str, Any]:
    """Write `out`/index.html, report.json and summary.txt, all from one dict, which is returned, and answers.html.

    `mixes` are folders with a manifest.json, `runs` maps a name to a training output folder, `scores` maps a stage to
    lm-eval output folders, one per seed, in the order of the chain; `commands` are those that were run. `size` is that
    of the paper's model to compare with, by default that of the runs' recipes; `suites` name the groups of tasks, by
    default all of eval/suites. The same inputs give the same bytes. `UserError` names what is missing or contradicts
    itself.
    """
    if not scores:
        raise UserError("no stage given; name at least one lm-eval output folder with --scores NAME=FOLDER")
    run_data, mix_data = [read_run(*run) for run in runs.items()], [read_mix(folder) for folder in mixes]
    recipes = {name: recipe_of(folder) for name, folder in runs.items()}
    seeds = {
        name: [read_evaluation(f"{name}, seed {n}" if n > 1 else name, folder) for n, folder in enumerate(folders, 1)]
        for name, folders in scores.items()
    }
    stages = [pool(name, of_stage) for name, of_stage in seeds.items()]
    suites = _all_suites() if suites is None else suites
    groups = groups_of(stages, suites)
    trained = {name for one in suites for name, group in one.groups.items() if not group.selects}
    table = score_table(stages, groups, trained)
    margin = next((one.margin for one in suites if one.name == PAPER_SUITE), 2.0)
    paper = compare_with_paper(stages, groups, size, recipes, margin / 100)
    report: dict[str, Any] = {
        "title": "Hermes 3 recipes: " + " → ".join(scores),
        "paper": paper,
        "scores": table | {"alignment": [row for row in table["rows"] if row["suite"] == ALIGNMENT]},
        "seeds": [seed_table(name, of, rows_of(of, groups)) for name, of in seeds.items() if len(of) > 1],
        "selections": [kept for name, folder in runs.items() if (kept := read_selection(name, folder))],
        "costs": [gpu_hours_beside_plan(name, folder, recipes[name]) for name, folder in runs.items()],
        "runs": run_data,
        "mixes": mix_data,
        "repository": repository(),
        "recipes": [
            {"run": run, "path": at and str(at), "sha256": at and sha256(ROOT / at)} for run, at in recipes.items()
        ],
        "evaluations": [_facts(one) for of_stage in seeds.values() for one in of_stage],
        "versions": _versions(mix_data, stages),
        "commands": commands,
        "dpo": what_dpo_changed(table, paper.get("size")),
    }
    report["verdict"] = words.verdict(report)
    steps = answers.changed(stages, rows_of(stages, groups), table["rows"])
    report["answers"] = [{key: step[key] for key in ("row", "step", "changed", "gained", "lost")} for step in steps]
    facts = report | {"smoke": words.smoke(report["scores"]["alignment"])}
    page = render(TEMPLATE, facts, _charts(report), text.FILTERS)
    write_text(out / "answers.html", answers.page(report["title"], steps))
    write_text(out / "report.json", json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(out / "summary.txt", words.summary(report) + f"The report: {out}/index.html\n")
    write_text(out / "index.html", page)
    return report


def read_mix(folder: Path) -> dict[str, Any]:
    """What the report shows of the mix in `folder`. `UserError` when its manifest is missing or it holds no tokens."""
    manifest = manifest_of(folder)
    if not manifest["total"]["tokens"]:
        raise UserError(f"{folder}: the mix holds no tokens; see its rejects")
    mix = {key: manifest[key] for key in MIX_KEYS} | {"folder": str(folder), "categories": composition(manifest)}
    mix |= {"manifest_sha256": sha256(folder / "manifest.json"), "output_sha256": manifest["output"]["sha256"]}
    rejects = [(*key.partition("/")[::2], count) for key, count in manifest["rejects"].items()]
    return mix | {"rejects": [dict(zip(("stage", "reason", "count"), one, strict=True)) for one in rejects]}


def repository(folder: Path = ROOT) -> dict[str, Any]:
    """`commit` (None outside a repository), whether tracked files differ from it, and the lock's sha256."""
    at = commit(folder) or ""
    lock = {"path": LOCK.name, "sha256": sha256(LOCK) if LOCK.is_file() else None}
    return {"commit": at.removesuffix("-dirty") or None, "changed": at.endswith("-dirty"), "lock": lock}


def _all_suites() -> list[suite.Suite]:
    """All of eval/suites: the paper's first, so that its groups give their names to what several suites measure."""
    names = sorted(path.stem for path in suite.SUITES.glob("*.yml"))
    if not names:
        raise UserError(f"{suite.SUITES}: no suites there, which name the scores; install hermes3 from its checkout")
    return [suite.load(name) for name in sorted(names, key=lambda n: (n != PAPER_SUITE, n != "epoch_selection"))]


def _facts(one: Evaluation) -> dict[str, Any]:
    files = [str(path.relative_to(one.folder)) for path in one.results_files]
    # by task, as one results file may have a limit and another none
    part = sorted(task for task, of in one.tasks.items() if (of["samples"] or 0) < (of["questions"] or 0))
    facts = {"stage": one.name, "folder": str(one.folder), "files": files, "tasks": one.tasks, "part": part}
    return facts | one.harness | {"skipped": one.skipped}


def _versions(mixes: list[dict[str, Any]], stages: list[Evaluation]) -> list[dict[str, Any]]:
    """Package versions with who recorded them: two rows of one package mean that it changed on the way."""
    pairs = [(of, f"mix {mix['name']}") for mix in mixes for of in mix["versions"].items()]
    for stage in stages:
        versions = {package: stage.harness[f"{package}_version"] for package in ("lm_eval", "transformers")}
        pairs += [(of, f"scores of {stage.name}") for of in versions.items() if of[1] is not None]
    recorded = {of: [by for other, by in pairs if other == of] for of in sorted({of for of, _ in pairs})}
    return [{"package": of[0], "version": of[1], "recorded_by": by} for of, by in recorded.items()]


def _charts(report: dict[str, Any]) -> dict[str, str]:
    scores, paper = report["scores"], report["paper"]
    drawn = {"scores": charts.scores_chart([r for r in scores["rows"] if r["suite"] != ALIGNMENT], scores["stages"])}
    if any("difference" in pair for row in paper.get("rows", []) for pair in row["against"].values()):
        drawn["paper"] = charts.paper_chart(paper)
    if report["runs"]:
        drawn["training"] = charts.training_chart(report["runs"])
    return drawn | {f"mix {mix['name']}": mix_chart(mix) for mix in report["mixes"] if mix["kind"] == "sft"}
