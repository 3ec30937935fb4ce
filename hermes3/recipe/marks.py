"""The mark of each value of a recipe: the comment that says whose it is, the paper's or ours, and why."""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

MARK = re.compile(r"(paper|ours|size|CPU|experiment)\b[:,; ]*(.*)", re.DOTALL)
SHARED = re.compile(r"as the next (two|three|four|five)")
COUNT = {"two": 2, "three": 3, "four": 4, "five": 5}


@dataclass(frozen=True)
class Mark:
    """`whose`: paper, ours, size, CPU or experiment; None: the comment, if any, does not say. `reason`: the rest."""

    whose: str | None
    reason: str


NONE = Mark(None, "")


def parse(comment: str) -> Mark:
    match = MARK.match(comment)
    return Mark(match[1], match[2].strip()) if match else Mark(None, comment)


def marks_of(path: Path) -> dict[str, Mark]:
    """By key, nested ones as `datasets.path`, `fsdp_config.offload_params` and `plugins.0`, in the file's order.

    A comment stands behind the value, or on the lines above the key. "as the next three" lends it to so many keys after
    it. A part without one takes its parent's; a leaf without one belongs to the leaf before it.
    """
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text, yaml.SafeLoader)
    marks: dict[str, Mark] = {}
    _walk(root, text.splitlines(), "", NONE, marks)
    return marks


def _walk(node: yaml.MappingNode, lines: list[str], prefix: str, parent: Mark, marks: dict[str, Mark]) -> None:
    lent, left = NONE, 0
    before = parent
    for key, value in node.value:
        mark = parse(_comment(key, value, lines))
        if shared := SHARED.search(mark.reason):
            lent, left = Mark(mark.whose, SHARED.sub("", mark.reason).strip(" ,;")), COUNT[shared[1]] + 1
        if mark.whose is None and left > 0:
            mark = lent
        left -= 1
        if mark.whose is None and prefix:
            mark = Mark(before.whose, mark.reason or before.reason)
        name = prefix + key.value
        marks[name] = before = mark
        if isinstance(value, yaml.ScalarNode) or value.flow_style:
            continue
        for number, inner in enumerate(value.value if isinstance(value, yaml.SequenceNode) else [value]):
            if isinstance(inner, yaml.MappingNode):
                _walk(inner, lines, f"{name}.", mark, marks)
            else:
                own = parse(lines[inner.end_mark.line][inner.end_mark.column :].strip(" #"))
                marks[f"{name}.{number}"] = own if own.whose else Mark(mark.whose, own.reason)


def _comment(key: yaml.Node, value: yaml.Node, lines: list[str]) -> str:
    line = key.start_mark.line
    same_line = value.end_mark.line == line and value.end_mark.column > key.end_mark.column
    behind = lines[line][(value if same_line else key).end_mark.column :]
    if "#" in behind:
        return behind.partition("#")[2].strip()
    above = []
    indent = " " * key.start_mark.column
    for text in reversed(lines[:line]):
        if not text.startswith(f"{indent}#"):
            break
        above.insert(0, text.strip("# "))
    return " ".join(above)


def left_out(path: Path, key: str) -> Mark:
    """The comment, on a line of its own, that says whose choice it is that `key` is left out of the recipe, and why."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and re.search(rf"\b{key}\b", line) and "left out" in line:
            said = re.search(r"\b(ours|size|CPU|experiment)\b", line)
            return Mark(said[1] if said else None, line.strip("# "))
    return NONE
