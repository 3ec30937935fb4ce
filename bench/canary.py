"""`make canary`: does the project still stand on the newest releases of Axolotl and its family, and which traps remain?

It installs what requirements.in names, without its pins, into .venv-canary, and copies the working tree to
outputs/canary. There it runs the tests that docs/traps.md names, `hermes3 check` on every recipe and 20 steps of the
demo's chain, and prints a table, which it also writes to outputs/canary.md. Not part of CI: a table to act on.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENV, COPY, TABLE = ROOT / ".venv-canary", ROOT / "outputs/canary", ROOT / "outputs/canary.md"
FAMILY = ("axolotl", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed", "torch")
TINY = "outputs/tiny"
NAMED_TEST = re.compile(r"`(test_\w+\.py::test_\w+)`")
CHAIN = [
    f"python data_mixes/samples/generate.py {TINY}/data",
    f"python data_mixes/samples/tiny_base.py {TINY}/llama {TINY}/data/train data_mixes/samples/common_words.txt",
    f"hermes3 tokenizer build {TINY}/llama {TINY}/base",
    "hermes3 mix build data_mixes/tiny_sft.yml --out mixes/tiny_sft",
    "hermes3 mix build data_mixes/tiny_dpo.yml --out mixes/tiny_dpo",
    f"accelerate launch -m axolotl.cli.train recipes/tiny_sft.yml --max_steps=20 --output_dir={TINY}/sft",
    f"accelerate launch -m axolotl.cli.train recipes/tiny_dpo.yml --max_steps=20 --base_model={TINY}/sft",
    f"axolotl merge-lora recipes/tiny_dpo.yml --base-model={TINY}/sft",
]


def run(command: list[str] | str, **options) -> subprocess.CompletedProcess:
    """Run in the copy with the canary's environment; output is kept, the last lines of it are shown in the table."""
    path = f"{VENV / 'bin'}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(COPY), "AXOLOTL_DO_NOT_TRACK": "1", "WANDB_MODE": "offline"}
    command = command.split() if isinstance(command, str) else command
    return subprocess.run(command, cwd=COPY, env=env, text=True, capture_output=True, **options)


def install() -> dict[str, str]:
    """Name -> version of what is now in .venv-canary."""
    lines = (ROOT / "requirements.in").read_text(encoding="utf-8").splitlines()
    names = [re.split(r"[=<>~!; ]", line)[0] for line in lines if line and not line.startswith("#")]
    subprocess.run(["uv", "venv", "-q", "--clear", "--python", sys.executable, VENV], check=True)
    install = ["uv", "pip", "install", "-q", "--python", VENV / "bin/python"]
    subprocess.run([*install, "--upgrade", *names], check=True)
    subprocess.run([*install, "--no-deps", "-e", ROOT], check=True)
    folders = [str(path) for path in VENV.glob("lib/python*/site-packages")]
    return {one.name.lower().replace("_", "-"): one.version for one in distributions(path=folders)}


def copy_tree() -> None:
    """The files that git knows or would take, so that the user's outputs/ and mixes/ are not touched."""
    shutil.rmtree(COPY, ignore_errors=True)
    for name in subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True).split():
        if (ROOT / name).is_file():
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, COPY / name)


def verdicts(rows: list[tuple[str, str, list[str]]]) -> list[str]:
    """A line of the table per trap: its tests show Axolotl without the measure, then with it."""
    tests = sorted({f"tests/{test}" for *_, names in rows for test in names})
    report = COPY / "traps.xml"
    run(["python", "-m", "pytest", "-q", f"--junitxml={report}", *tests])
    outcome: dict[str, list[str]] = {test: [] for test in tests}
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        name = f"tests/{case.get('classname', '').split('.')[-1]}.py::{case.get('name', '').split('[')[0]}"
        problems = [*case.iter("failure"), *case.iter("error"), *case.iter("skipped")]
        outcome.setdefault(name, []).append((problems[0].get("message") or "error").split("\n")[0] if problems else "")
    lines = []
    for number, trap, names in rows:
        bad = {name: said for name in names for said in (outcome[f"tests/{name}"] or ["did not run"]) if said}
        if not bad:
            verdict, where = "still there", ", ".join(name.split("::")[1] for name in names)
        else:  # a failed assertion is another behaviour; anything else is the test's own trouble
            asserted = all("assert" in said.lower() or "DID NOT RAISE" in said for said in bad.values())
            verdict = "mended or changed" if asserted else "cannot tell"
            where = "; ".join(f"{name.split('::')[1]}: {said[:120]}" for name, said in bad.items())
        lines.append(f"| {number} | {trap} | {verdict} | {where.replace('|', '/')} |")
    return lines


def traps() -> list[tuple[str, str, list[str]]]:
    """Number, description and tests of each row of docs/traps.md that names tests."""
    page = (ROOT / "docs/traps.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| (\d+) \| (.+)$", page)
    return [(n, re.split(r"\. `\w+/", row)[0], tests) for n, row in rows if (tests := NAMED_TEST.findall(row))]


def main() -> None:
    versions = install()
    copy_tree()
    head = ", ".join(f"{name} {versions[name]}" for name in FAMILY)
    lines = [
        f"Newest releases, Python {platform.python_version()}: {head}.",
        "",
        "| | trap | verdict | tests |",
        "|---|---|---|---|",
    ]
    lines += verdicts(traps())
    lines += ["", "| command | |", "|---|---|"]
    recipes = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("recipes/**/*.yml"))
    for command in [*CHAIN, f"hermes3 check {' '.join(recipes)}"]:  # the tiny recipes name what the chain makes
        done = run(command)
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        result = "runs" if done.returncode == 0 else f"exit code {done.returncode}: {last[:200].replace('|', '/')}"
        lines.append(f"| `{command.replace(' '.join(recipes), 'RECIPES')}` | {result} |")
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
