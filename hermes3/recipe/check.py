"""Everything that can be known of a recipe on a laptop: its lines and files (`rules.py`), Axolotl's and
DeepSpeed's schemas (`schema.py`), the paper (`paper.py`), and keys that nothing reads (`reads.py`)."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hermes3.files import UserError
from hermes3.recipe import paper, reads, rules, schema
from hermes3.recipe.hardware import hardware_of
from hermes3.recipe.read import ERROR, Finding, from_error, read


@dataclass
class Report:
    """What `check` says of the recipe at `path`. `readers`: key -> the line that reads it; {} if Axolotl refuses it."""

    path: Path
    findings: list[Finding] = field(default_factory=list)
    readers: dict[str, str | None] = field(default_factory=dict)
    reproduces: str | None = None  # the row of the paper that the recipe is compared with

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == ERROR]

    def line(self) -> str:
        """`ok   recipes/8b_sft.yml: held to the paper's 8b_sft; 67 keys read`."""
        count = f": {len(self.errors)} error{'s' * (len(self.errors) != 1)}" if self.errors else ""
        claim = f"held to the paper's {self.reproduces}" if self.reproduces else "not compared with the paper"
        n_read = sum(line is not None for line in self.readers.values())
        result = f"{claim}; {n_read} keys read" if self.readers else "not looked at further"
        return f"{'BAD ' if self.errors else 'ok  '} {self.path}{count}: {result}"

    def to_json(self) -> dict[str, Any]:
        """For scripts: `{"recipe", "ok", "findings", "reproduces", "reads"}`."""
        page = {"recipe": str(self.path), "ok": not self.errors, "findings": [asdict(one) for one in self.findings]}
        lines = [{"key": key, "line": line} for key, line in self.readers.items()]
        return page | {"reproduces": self.reproduces, "reads": lines}


def default_recipes() -> list[Path]:
    """Those of the repository. `UserError` elsewhere than at its root, from where recipes name their files."""
    if recipes := [*sorted(Path("recipes").glob("*.yml")), *sorted(Path("recipes/experiments").glob("*.yml"))]:
        return recipes
    raise UserError("recipes: no recipe in this folder; run from the root of the repository, or name recipes")


def check_all(paths: list[Path], against: str | None = None) -> list[Report]:
    """The reports of recipes, in their order. `against`: the row of the paper to compare them with, e.g. `8b_sft`."""
    reports, readable = [Report(path) for path in paths], {}
    for report in reports:
        try:
            recipe = read(report.path)
            report.findings += rules.findings(report.path, recipe)
            readable[report.path] = recipe, hardware_of(report.path, recipe)
        except UserError as error:
            report.findings.append(from_error(error, "file", report.path))
    examined = schema.examine(list(readable))
    for report in (one for one in reports if one.path in readable):
        recipe, hardware = readable[report.path]
        wrong, resolved = examined[report.path]
        report.findings += wrong
        report.reproduces = against or recipe.get("reproduces")
        if report.reproduces is not None:
            report.findings += paper.findings(recipe, hardware, report.reproduces)
        if resolved:
            report.readers, keys = reads.readers(recipe), {finding.key for finding in report.errors}
            report.findings += [finding for finding in reads.findings(recipe) if finding.key not in keys]
    return reports


def validate(path: Path) -> dict[str, Any]:
    """The recipe as Axolotl resolves it, defaults filled in, on the hardware that it declares.
    `UserError` for what is missing, what `schema` finds, and stale prepared data; all else is `hermes3 check`'s."""
    recipe = read(path)
    hardware_of(path, recipe)
    wrong, resolved = schema.examine([path])[path]
    for finding in (*rules.basic(path, recipe), *wrong):
        raise UserError(f"{path}: {finding}")
    rules.check_prepared(path, recipe)
    return resolved
