"""Everything that can be known of a recipe on a laptop: `hermes3 check`.

In turn: the rules of this project, its DeepSpeed file, Axolotl's schema and validators for the declared hardware,
prepared data, conformance with the paper, and which of its keys Axolotl reads.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hermes3.recipe.conform import Row, table
from hermes3.recipe.finding import ERROR, NOTE, Finding, from_error
from hermes3.recipe.hardware import hardware_of
from hermes3.recipe.ignored import Reader


@dataclass
class Report:
    """What was found of the recipe at `path`. `rows`: the conformance table; `readers`: who reads each key."""

    path: Path
    findings: list[Finding] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    compared: bool = False  # with the paper; not before it can be read

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == ERROR]

    def to_json(self) -> dict[str, Any]:
        """For scripts: `{"recipe", "ok", "findings", "conformance", "reads"}`."""
        return {
            "recipe": str(self.path),
            "ok": not self.errors,
            "findings": [asdict(finding) for finding in self.findings],
            "conformance": [asdict(row) for row in self.rows],
            "reads": [asdict(reader) for reader in self.readers],
        }


def notes(reports: list[Report]) -> dict[str, list[Path]]:
    """The notes of all reports -> the recipes of which each is true."""
    found: dict[str, list[Path]] = {}
    for report in reports:
        for finding in report.findings:
            if finding.level == NOTE:
                found.setdefault(str(finding), []).append(report.path)
    return found


def default_recipes() -> list[Path]:
    """Those of the repository. `ValueError` elsewhere than at its root, from where recipes name their files."""
    found = [*sorted(Path("recipes").glob("*.yml")), *sorted(Path("recipes/experiments").glob("*.yml"))]
    if not found:
        raise ValueError("recipes: no recipe in this folder; run from the root of the repository, or name recipes")
    return found


def check(path: Path) -> Report:
    """The report of one recipe."""
    return check_all([path])[0]


def check_all(paths: list[Path], progress: Callable[[str], None] = lambda text: None) -> list[Report]:
    """The reports of recipes, in their order. `progress` is told what is going on. Some ten seconds are imports."""
    progress("loading Axolotl")
    with _quiet():
        from hermes3.recipe import ignored, reads, schema  # noqa: F401

        reads.prepare()
    reports, recipes = [], {}
    for number, path in enumerate(paths, 1):
        progress(f"{number} of {len(paths)}: {path}")
        report, recipe = inspect(path)
        reports.append(report)
        if recipe is not None:
            recipes[path] = recipe
    traces = reads.traces(list(recipes.values()), lambda done, of: progress(f"training for one step: {done} of {of}"))
    traced = dict(zip(recipes, traces, strict=True))
    for report in reports:
        if report.path in traced:
            recipe, trace = recipes[report.path], traced[report.path]
            report.readers = ignored.readers(recipe, trace)
            known = {finding.key for finding in report.errors}
            report.findings += [found for found in ignored.findings(recipe, trace) if found.key not in known]
    return reports


def inspect(path: Path) -> tuple[Report, dict[str, Any] | None]:
    """The report but for who reads what, in a fraction of a second; and the recipe, None if Axolotl refuses it."""
    from hermes3.recipe import deepspeed_file, rules, schema
    from hermes3.recipe.prepared import check_prepared
    from hermes3.recipe.read import read

    report = Report(path)
    try:
        recipe = read(path)
    except ValueError as error:
        report.findings.append(from_error(error, "file", path))
        return report, None
    report.findings += [*rules.findings(path, recipe), *deepspeed_file.findings(path, recipe)]
    try:
        hardware = hardware_of(path, recipe)
    except ValueError as error:
        report.findings.append(from_error(error, "hardware", path))
        return report, None
    wrong, resolved = schema.findings(recipe, hardware)
    report.findings += wrong
    try:
        check_prepared(path, recipe)
    except ValueError as error:
        report.findings.append(from_error(error, "datasets", path))
    report.rows, wrong_marks = table(path, recipe, hardware)
    report.compared = True
    report.findings += wrong_marks
    return report, recipe if resolved else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Swallow what imports print on a machine without a GPU: a dozen lines about kernels that nobody here uses."""
    null, stderr = os.open(os.devnull, os.O_WRONLY), os.dup(2)
    os.dup2(null, 2)
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
