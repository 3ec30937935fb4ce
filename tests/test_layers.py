"""Packages import in one direction, from the top of this list down; each says here where it stands."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# from the command line down to what everything uses
ORDER = ["cli", "slurm", "report", "quantize", "evaluate", "results", "train", "plan", "recipe", "mix"]
ORDER += ["stats", "page", "chat", "messages", "model_folder", "files", "__version__"]


def imported(path: Path) -> list[str]:
    """The dotted names that a file imports, inside functions too."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    origins = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return names + [f"{node.module}.{alias.name}" for node in origins for alias in node.names]


def test_no_package_imports_one_above_it_nor_tests_and_benchmarks():
    wrong, seen = [], {"__version__"}
    for path in sorted((ROOT / "hermes3").rglob("*.py")):
        package = path.relative_to(ROOT / "hermes3").with_suffix("").parts[0]
        if package == "__init__":
            continue
        seen.add(package)
        for top, *below in (name.split(".") for name in imported(path)):
            upwards = top == "hermes3" and below and ORDER.index(below[0]) < ORDER.index(package)
            if upwards or top in ("tests", "bench", "conftest", "data_mixes"):
                wrong.append(f"{path.relative_to(ROOT)} imports {'.'.join([top, *below])}")
    assert wrong == []
    assert seen == set(ORDER)  # a new package takes its place in the list
