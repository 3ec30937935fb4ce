"""The report of one chain: mixes, training runs and scores in one dict, rendered as a page, as Markdown and as JSON."""

import json
from pathlib import Path
from typing import Any

from hermes3.files import write_text
from hermes3.report import charts, text
from hermes3.report.curves import read_run
from hermes3.report.mixes import read_mix
from hermes3.report.page import render
from hermes3.report.results import Stage, read_stage
from hermes3.report.scores import score_table

HERE = Path(__file__).parent
SIZE_LIMIT = 1_000_000  # bytes of index.html: it must open from a mail or a pull request


def write_report(
    out: Path, mixes: list[Path], runs: dict[str, Path], scores: dict[str, Path], commands: list[str]
) -> dict[str, Any]:
    """Write `out`/index.html, report.md, report.json and summary.txt, all from one dict, which is returned.

    `mixes` are folders with a manifest.json, `runs` maps a name to a training output folder, `scores` maps a stage to
    an lm-eval output folder, in the order of the chain; `commands` are those that were run. The
    same inputs give the same bytes. Raises ValueError naming what is missing or contradicts itself.
    """
    report = collect(mixes, runs, scores, commands)
    page = render(HERE / "page.html.jinja", report, _charts(report), text.FILTERS)
    if len(page.encode()) > SIZE_LIMIT:
        raise ValueError(f"{out}/index.html would have {len(page.encode())} bytes; log fewer steps (logging_steps)")
    write_text(out / "report.json", json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(out / "report.md", render(HERE / "page.md.jinja", report, {}, text.FILTERS))
    write_text(out / "summary.txt", text.summary(report["scores"]) + f"The report: {out}/index.html\n")
    write_text(out / "index.html", page)
    return report


def collect(mixes: list[Path], runs: dict[str, Path], scores: dict[str, Path], commands: list[str]) -> dict[str, Any]:
    """The report as plain data: what report.json holds."""
    if not scores:
        raise ValueError("scores: no stage given; name at least one lm-eval output folder")
    stages = [read_stage(name, folder) for name, folder in scores.items()]
    run_data = [read_run(name, folder) for name, folder in runs.items()]
    mix_data = [read_mix(folder) for folder in mixes]
    table = score_table(stages)
    return {
        "title": "Hermes 3 recipes: " + " → ".join(scores),
        "verdict": text.verdict(table, run_data),
        "scores": table,
        "runs": run_data,
        "mixes": mix_data,
        "evaluations": [_evaluation(stage) for stage in stages],
        "versions": _versions(mix_data, stages),
        "commands": commands,
        "captions": {
            "scores": text.scores_caption(table),
            "training": text.training_caption(run_data),
            "mixes": {mix["name"]: text.mix_caption(mix) for mix in mix_data if mix["kind"] == "sft"},
        },
    }


def _evaluation(stage: Stage) -> dict[str, Any]:
    tasks = {task: {**facts, "samples": len(stage.docs[task])} for task, facts in stage.tasks.items()}
    file = str(stage.results_file.relative_to(stage.folder))
    return {"stage": stage.name, "file": file, **stage.harness, "tasks": tasks, "skipped": stage.skipped}


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
    drawn = {"scores": charts.scores_chart(report["scores"])}
    if report["runs"]:
        drawn["training"] = charts.training_chart(report["runs"])
    return drawn | {
        f"mix {mix['name']}": charts.mix_chart(mix)
        for mix in report["mixes"]
        if mix["name"] in report["captions"]["mixes"]
    }
