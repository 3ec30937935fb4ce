"""The report: mixes, training runs and scores in one dict, rendered as a page, as Markdown and as JSON."""

import json
from pathlib import Path
from typing import Any

from hermes3.files import write_text
from hermes3.page import charts, text
from hermes3.page.shell import render
from hermes3.report.cost import cost_of
from hermes3.report.curves import read_run
from hermes3.report.epochs import read_selection
from hermes3.report.groups import PAPER_SUITE, groups_of
from hermes3.report.mixes import read_mix
from hermes3.report.paper import compare_with_paper, what_dpo_changed
from hermes3.report.provenance import recipe_facts, recipe_of, repository
from hermes3.report.results import Stage, read_stage
from hermes3.report.scores import rows_of, score_table
from hermes3.report.seeds import seed_table
from hermes3.report.verdict import verdict

HERE = Path(__file__).parent
SIZE_LIMIT = 3_000_000  # bytes of index.html: it must open from a mail or a pull request


def write_report(
    out: Path,
    mixes: list[Path],
    runs: dict[str, Path],
    scores: dict[str, list[Path]],
    commands: list[str],
    size: str | None = None,
    suites: list[Any] | None = None,
) -> dict[str, Any]:
    """Write `out`/index.html, report.md, report.json and summary.txt, all from one dict, which is returned.

    `mixes` are folders with a manifest.json, `runs` maps a name to a training output folder, `scores` maps a stage to
    lm-eval output folders, one a seed, in the order of the chain; `commands` are those that were run. `size` is that of
    the paper's model to compare with, by default that of the runs' recipes; `suites` name the groups of
    tasks, by default all of eval/suites. The same inputs give the same bytes. Raises ValueError naming what is missing
    or contradicts itself.
    """
    report = collect(mixes, runs, scores, commands, size, suites)
    page = render(HERE / "page.html.jinja", report, _charts(report), text.FILTERS)
    if len(page.encode()) > SIZE_LIMIT:
        raise ValueError(f"{out}/index.html would have {len(page.encode())} bytes; give fewer runs or stages")
    write_text(out / "report.json", json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(out / "report.md", render(HERE / "page.md.jinja", report, {}, text.FILTERS))
    write_text(out / "summary.txt", text.summary(report) + f"The report: {out}/index.html\n")
    write_text(out / "index.html", page)
    return report


def collect(
    mixes: list[Path],
    runs: dict[str, Path],
    scores: dict[str, list[Path]],
    commands: list[str],
    size: str | None = None,
    suites: list[Any] | None = None,
) -> dict[str, Any]:
    """The report as plain data: what report.json holds."""
    if not scores:
        raise ValueError("scores: no stage given; name at least one lm-eval output folder")
    run_data = [read_run(name, folder) for name, folder in runs.items()]
    mix_data = [read_mix(folder) for folder in mixes]
    recipes = {name: recipe_of(folder) for name, folder in runs.items()}
    read = {name: _seeds(name, folders) for name, folders in scores.items()}
    stages = [seeds[0] for seeds in read.values()]
    groups = groups_of(stages, _suites() if suites is None else suites)
    report: dict[str, Any] = {
        "title": "Hermes 3 recipes: " + " → ".join(scores),
        "paper": compare_with_paper(stages, groups, size, recipes),
        "scores": score_table(stages, groups),
        "seeds": [seed_table(name, seeds, rows_of(seeds, groups)) for name, seeds in read.items() if len(seeds) > 1],
        "selections": [found for name, folder in runs.items() if (found := read_selection(name, folder))],
        "costs": [cost_of(name, folder, recipes[name]) for name, folder in runs.items()],
        "runs": run_data,
        "mixes": mix_data,
        "repository": repository(),
        "recipes": [recipe_facts(name, folder) for name, folder in runs.items()],
        "evaluations": [_evaluation(stage) for seeds in read.values() for stage in seeds],
        "versions": _versions(mix_data, stages),
        "commands": commands,
    }
    table = report["scores"]
    report["dpo"] = what_dpo_changed(table, report["paper"].get("size"))
    table["alignment"] = [row for row in table["rows"] if row["suite"] == text.ALIGNMENT]
    return report | {
        "verdict": verdict(report),
        "captions": {
            "scores": text.scores_caption(table),
            "training": text.training_caption(run_data),
            "mixes": {mix["name"]: text.mix_caption(mix) for mix in mix_data if mix["kind"] == "sft"},
            "paper": text.paper_caption(report["paper"]) if "rows" in report["paper"] else "",
        },
    }


def _seeds(name: str, folders: list[Path]) -> list[Stage]:
    return [read_stage(name if place == 1 else f"{name}, seed {place}", path) for place, path in enumerate(folders, 1)]


def _suites() -> list[Any]:
    """All of eval/suites: the paper's first, so that its groups give their names to what several suites measure."""
    from hermes3.evaluate.suite import SUITES, load

    names = sorted(path.stem for path in SUITES.glob("*.yml"))
    return [load(name) for name in sorted(names, key=lambda name: (name != PAPER_SUITE, name != "epoch_selection"))]


def _evaluation(stage: Stage) -> dict[str, Any]:
    files = [str(path.relative_to(stage.folder)) for path in stage.results_files]
    facts = {"stage": stage.name, "folder": str(stage.folder), "files": files}
    # by task, as one results file may have a limit and another none
    part = sorted(task for task, of in stage.tasks.items() if of["samples"] < of["questions"])
    return facts | stage.harness | {"tasks": stage.tasks, "part": part, "skipped": stage.skipped}


def _versions(mixes: list[dict[str, Any]], stages: list[Stage]) -> list[dict[str, Any]]:
    """Package versions with who recorded them: two rows of one package mean that it changed on the way."""
    seen: dict[tuple[str, str], list[str]] = {}
    for mix in mixes:
        for package, version in mix["versions"].items():
            seen.setdefault((package, version), []).append(f"mix {mix['name']}")
    for stage in stages:
        for package in ("lm_eval", "transformers"):
            version = stage.harness[f"{package}_version"]
            if version is not None:
                seen.setdefault((package, version), []).append(f"scores of {stage.name}")
    return [{"package": key[0], "version": key[1], "recorded_by": places} for key, places in sorted(seen.items())]


def _charts(report: dict[str, Any]) -> dict[str, Any]:
    scores = report["scores"]
    main = [row for row in scores["rows"] if row["suite"] != text.ALIGNMENT]
    drawn = {"scores": charts.scores_chart(main, scores["stages"], "scores")}
    if scores["alignment"]:
        drawn["alignment"] = charts.scores_chart(scores["alignment"], scores["stages"], "alignment")
    if report["captions"]["paper"]:
        drawn["paper"] = charts.paper_chart(report["paper"])
    if report["runs"]:
        drawn["training"] = charts.training_chart(report["runs"])
    return drawn | {
        f"mix {mix['name']}": charts.mix_chart(mix)
        for mix in report["mixes"]
        if mix["name"] in report["captions"]["mixes"]
    }
