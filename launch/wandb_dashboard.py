#!/usr/bin/env python
"""The wandb workspace and report of a project, as code: few panels, each for a question that a run must answer.

    python launch/wandb_dashboard.py --dry-run                 # print both, without a network
    python launch/wandb_dashboard.py --entity me               # save both
    python launch/wandb_dashboard.py --epochs outputs/70b/sft  # log what `hermes3 select` wrote there, and the paper's
    python launch/wandb_dashboard.py --stage SFT+DPO=RESULTS   # log a folder of `hermes3 eval`, as `SFT+DPO, RESULTS`

The default workspace shows every key that a run logs, some forty, and buries these. Metrics are those that Axolotl, TRL
and hermes3/train/metrics.py log (wandb puts `train/` before them); scores are logged here, as `eval/GROUP`.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

STEP = "train/global_step"
SUITES = Path(__file__).parents[1] / "eval/suites"
GROUPS = tuple(yaml.safe_load((SUITES / "epoch_selection.yml").read_text(encoding="utf-8"))["groups"])
PAPER_RUN = "paper: Hermes 3 70B, SFT"
BY_EPOCH = "By epoch, beside the paper's 70B (Table 2): which is kept, and why."


@dataclass(frozen=True)
class Plot:
    """One panel. `intent`: what to look for in it, a sentence. `x` None: one bar per run, of its last value."""

    title: str
    metrics: tuple[str, ...]
    x: str | None
    intent: str


def _sections() -> dict[str, list[Plot]]:
    """Those of dashboard.yml, and the groups that an epoch is chosen by."""
    declared = yaml.safe_load(Path(__file__).with_name("dashboard.yml").read_text(encoding="utf-8"))
    sections = {
        name: [Plot(one["title"], tuple(one["metrics"]), one.get("x", STEP) or None, one["intent"]) for one in plots]
        for name, plots in declared.items()
    }
    return sections | {"Evaluation": [Plot(group, (f"eval/{group}",), "epoch", BY_EPOCH) for group in GROUPS]}


SECTIONS = _sections()


def _panel(plot: Plot) -> Any:
    import wandb_workspaces.reports.v2 as wr

    if plot.x is None:
        return wr.BarPlot(title=plot.title, metrics=list(plot.metrics))
    return wr.LinePlot(title=plot.title, x=plot.x, y=list(plot.metrics))


def workspace(entity: str, project: str) -> Any:
    """Sections with their plots, and a text with the intents at the head of each. Runs are grouped by recipe."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    def section(name: str, plots: list[Plot]) -> Any:
        intents = wr.MarkdownPanel(markdown="\n".join(f"- **{plot.title}**: {plot.intent}" for plot in plots))
        return ws.Section(name=name, panels=[intents, *map(_panel, plots)], is_open=True)

    return ws.Workspace(
        entity=entity,
        project=project,
        name="Hermes 3",
        sections=[section(*one) for one in SECTIONS.items()],
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("Group")]),
        auto_generate_panels=False,
    )


def report(entity: str, project: str) -> Any:
    """The same plots to read from top to bottom, each under its intent."""
    import wandb_workspaces.reports.v2 as wr

    blocks = []
    for name, plots in SECTIONS.items():
        blocks.append(wr.H1(text=name))
        for plot in plots:
            runs = wr.Runset(groupby=["group"])  # of this project
            blocks += [wr.P(text=plot.intent), wr.PanelGrid(runsets=[runs], panels=[_panel(plot)])]
    description = "Runs are grouped by recipe; their names and tags say size, phase, seed and git commit."
    return wr.Report(entity=entity, project=project, title="Hermes 3", description=description, blocks=blocks)


def log_run(name: str, points: list[dict[str, float]], project: str, entity: str | None) -> None:
    """A wandb run of scores. Its id comes of its name: logged again, it takes the former one's place."""
    import wandb

    identity = hashlib.sha256(name.encode()).hexdigest()[:8]
    with wandb.init(
        project=project, entity=entity, id=identity, name=name, group="evaluation", job_type="evaluation"
    ) as run:
        run.define_metric("epoch")
        run.define_metric("eval/*", step_metric="epoch")
        for point in points:
            run.log(point)


def epochs_of_selection(run: Path) -> list[dict[str, float]]:
    """The scores in `run`/select.json, one point per epoch; fractions as percentages. `ValueError` where none is."""
    path = run / "select.json"
    if not path.is_file():
        raise ValueError(f"{path} is not there; evaluate each epoch and run `hermes3 select {run}`")
    record = json.loads(path.read_text(encoding="utf-8"))
    scores, scales = record["scores"], record["scales"]
    epochs = sorted({int(epoch) for of_group in scores.values() for epoch in of_group})
    return [
        {"epoch": epoch} | {f"eval/{group}": scales[group] * of[str(epoch)] for group, of in scores.items()}
        for epoch in epochs
    ]


def epochs_of_paper() -> list[dict[str, float]]:
    """Table 2, one point per epoch."""
    from hermes3.results.published import load

    table = load("table2")
    return [
        {"epoch": number} | {f"eval/{group}": row.values[number - 1] for group, row in table.rows.items()}
        for number in range(1, len(table.columns) + 1)
    ]


def scores_of_stage(folder: Path) -> dict[str, float]:
    """Every group of `eval/suites` that was measured in `folder`; fractions as percentages."""
    from hermes3.results.groups import groups_of, score_of
    from hermes3.results.lm_eval import read_evaluation
    from hermes3.results.suite import load

    stage = read_evaluation("stage", folder)
    groups = groups_of([stage], [load(path.stem) for path in sorted(SUITES.glob("*.yml"))])
    scores = {group.name: score_of(stage, group) for group in groups}
    return {f"eval/{name}": score.scale * score.value for name, score in scores.items() if score}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", help="user or team; default: yours")
    parser.add_argument("--project", default="hermes3", help="as wandb_project in the recipes")
    parser.add_argument("--dry-run", action="store_true", help="print workspace and report as JSON")
    parser.add_argument("--epochs", type=Path, action="append", metavar="RUN", help="log the scores of a run's epochs")
    parser.add_argument("--stage", action="append", metavar="NAME=RESULTS", help="log the scores of a model")
    given = parser.parse_args(arguments)
    if given.dry_run:
        entity = given.entity or "ENTITY"
        made = {one.__name__: one(entity, given.project)._to_model() for one in (workspace, report)}
        spec = {name: model.model_dump(mode="json", by_alias=True, exclude_none=True) for name, model in made.items()}
        print(json.dumps(spec, indent=2))
        return
    for run in given.epochs or []:
        log_run(f"{run}, epochs", epochs_of_selection(run), given.project, given.entity)
    if given.epochs:
        log_run(PAPER_RUN, epochs_of_paper(), given.project, given.entity)
    for stage in given.stage or []:
        name, _, folder = stage.partition("=")
        if not folder:
            raise ValueError(f"--stage {stage}: give it as NAME=FOLDER, of `hermes3 eval`")
        log_run(f"{name}, {folder}", [scores_of_stage(Path(folder))], given.project, given.entity)
    if given.epochs or given.stage:
        return
    import wandb

    entity = given.entity or wandb.Api().default_entity
    for one in (workspace, report):
        saved = one(entity, given.project)
        saved.save()
        print(saved.url)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"wandb_dashboard: {error}")
