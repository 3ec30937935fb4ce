"""Everything that can be known of a recipe on a laptop: `hermes3 check`.

In turn: its own lines (`rules.py`), what it starts from, reads and writes (`inputs.py`), Axolotl's and DeepSpeed's
schemas for the declared hardware (`schema.py`), which of its keys nothing reads (`reads.py`), and the paper, where it
says that it reproduces it (`paper.py`).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hermes3.files import UserError
from hermes3.recipe import inputs, paper, reads, rules, schema
from hermes3.recipe.finding import ERROR, NOTE, Finding, from_error
from hermes3.recipe.hardware import Hardware, hardware_of
from hermes3.recipe.read import read


@dataclass
class Report:
    """What was found of the recipe at `path`. `readers`: who reads each key, [] if that was not looked at."""

    path: Path
    findings: list[Finding] = field(default_factory=list)
    readers: list[reads.Reader] = field(default_factory=list)
    reproduces: str | None = None  # the row of the paper that the recipe was held to

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == ERROR]

    def to_json(self) -> dict[str, Any]:
        """For scripts: `{"recipe", "ok", "findings", "reproduces", "reads"}`."""
        return {
            "recipe": str(self.path),
            "ok": not self.errors,
            "findings": [asdict(finding) for finding in self.findings],
            "reproduces": self.reproduces,
            "reads": [asdict(reader) for reader in self.readers],
        }


def default_recipes() -> list[Path]:
    """Those of the repository. `UserError` elsewhere than at its root, from where recipes name their files."""
    found = [*sorted(Path("recipes").glob("*.yml")), *sorted(Path("recipes/experiments").glob("*.yml"))]
    if not found:
        raise UserError("recipes: no recipe in this folder; run from the root of the repository, or name recipes")
    return found


def check(path: Path, against: str | None = None) -> Report:
    """The report of one recipe."""
    return check_all([path], against)[0]


def check_all(paths: list[Path], against: str | None = None) -> list[Report]:
    """The reports of recipes, in their order. `against`: the row of the paper to hold them to, e.g. `8b_sft`."""
    reports, readable = [], {}
    for path in paths:
        report = Report(path)
        reports.append(report)
        try:
            recipe = read(path)
        except UserError as error:
            report.findings.append(from_error(error, "file", path))
            continue
        report.findings += [*rules.findings(path, recipe), *inputs.findings(path, recipe)]
        try:
            readable[path] = recipe, hardware_of(path, recipe)
        except ValueError as error:
            report.findings.append(from_error(error, "hardware", path))
    examined = schema.examine(list(readable))
    for report in reports:
        if report.path in readable:
            recipe, hardware = readable[report.path]
            wrong, resolved = examined[report.path]
            report.findings += wrong
            report.reproduces = against or recipe.get("reproduces")
            report.findings += _of_the_paper(recipe, hardware, report.reproduces)
            if resolved:
                report.readers = reads.readers(recipe)
                known = {finding.key for finding in report.errors}
                report.findings += [found for found in reads.findings(recipe) if found.key not in known]
    return reports


def _of_the_paper(recipe: dict[str, Any], hardware: Hardware, name: str | None) -> Iterator[Finding]:
    if name is not None:
        try:
            yield from paper.findings(recipe, hardware, name)
        except UserError as error:
            yield from_error(error, "reproduces")


def validate(path: Path) -> dict[str, Any]:
    """The recipe as Axolotl resolves it, defaults filled in, on the hardware that it declares.

    `UserError` names the file, the key and the remedy: for what is missing, what `schema` finds, and stale prepared
    data. All else is `hermes3 check`'s alone.
    """
    recipe = read(path)
    hardware_of(path, recipe)
    wrong, resolved = schema.examine([path])[path]
    for finding in (*rules.basic(path, recipe), *wrong):
        if finding.level == ERROR:
            raise UserError(f"{path}: {finding}")
    inputs.check_prepared(path, recipe)
    return resolved


def notes(reports: list[Report]) -> dict[str, list[Path]]:
    """The notes of all reports -> the recipes of which each is true."""
    found: dict[str, list[Path]] = {}
    for report in reports:
        for finding in report.findings:
            if finding.level == NOTE:
                found.setdefault(str(finding), []).append(report.path)
    return found
