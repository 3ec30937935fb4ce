"""Packages import in one direction, from the top of this list down; each says here where it stands."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# from the command line down to what everything uses
ORDER = ["cli", "slurm", "report", "quantize", "evaluate", "results", "train", "plan", "recipe", "mix"]
ORDER += ["stats", "page", "chat", "messages", "model_folder", "git", "files"]


def imported(path: Path) -> list[tuple[int, list[str]]]:
    """(line, parts of the dotted name) of each import in a file, those inside functions too."""
    pairs = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            pairs += [(node.lineno, [*node.module.split("."), alias.name]) for alias in node.names]
        elif isinstance(node, ast.Import):
            pairs += [(node.lineno, alias.name.split(".")) for alias in node.names]
    return pairs


def test_no_package_imports_one_above_it_nor_tests_and_benchmarks():
    wrong, seen = [], set()
    for path in sorted((ROOT / "hermes3").rglob("*.py")):
        package = path.relative_to(ROOT / "hermes3").with_suffix("").parts[0]
        if package == "__init__":
            continue
        seen.add(package)
        for line, (top, *below) in imported(path):
            if top in ("tests", "bench", "conftest", "data_mixes"):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {top}, which is no part of the product")
            elif (
                top == "hermes3" and below not in ([], ["__version__"]) and ORDER.index(below[0]) < ORDER.index(package)
            ):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {below[0]}, which stands above {package}")
    assert wrong == []
    assert seen == set(ORDER)  # a new package takes its place in the list
