"""Packages import in one direction, from the top of this list down; each says here where it stands."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# from the command line down to what everything uses
ORDER = ["cli", "slurm", "report", "quantize", "evaluate", "results", "train", "plan", "recipe", "mix"]
ORDER += ["stats", "page", "chat", "messages", "model_folder", "git", "files"]


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, package of hermes3) of each import in a file, those inside functions too."""
    pairs = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        parts = [name.split(".") for name in names]
        pairs += [(node.lineno, part[1]) for part in parts if part[0] == "hermes3" and len(part) > 1]
    return pairs


def test_no_package_imports_one_above_it():
    wrong, seen = [], set()
    for path in sorted((ROOT / "hermes3").rglob("*.py")):
        package = path.relative_to(ROOT / "hermes3").with_suffix("").parts[0]
        if package == "__init__":
            continue
        seen.add(package)
        for line, below in imported(path):
            if below != "__version__" and ORDER.index(below) < ORDER.index(package):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {below}, which stands above {package}")
    assert wrong == []
    assert seen == set(ORDER)  # a new package takes its place in the list


def test_the_product_imports_nothing_of_its_tests_and_benchmarks():
    for path in (ROOT / "hermes3").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not any(f"from {name}" in text for name in ("tests", "bench", "conftest", "data_mixes")), path
