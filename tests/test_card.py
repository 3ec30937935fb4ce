"""The card of a mix: every figure against one worked out by hand, and the pages that show them."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import at

from hermes3.mix.card import facts, prepare, write_card

MIXES = (Path(__file__).parent / "card.yml").read_text(encoding="utf-8")


@pytest.fixture
def mix(tmp_path) -> Callable[[str], tuple[Path, dict]]:
    def write(name: str) -> tuple[Path, dict]:
        """The folder and the manifest of a mix of tests/card.yml; its rows are in two files."""
        folder, mix = tmp_path / name, yaml.safe_load(MIXES)[name]
        rows = [one for n, one in mix["rows"] for _ in range(n)]
        texts = [{k: v if isinstance(v, str | int) else json.dumps(v) for k, v in one.items()} for one in rows]
        rejects = [one for n, *one in mix["rejects"] for _ in range(n)]
        columns = [pa.array(one, pa.string()) for one in list(zip(*rejects, strict=True)) or [[]] * 4]
        left_out = pa.table(columns, ("source", "stage", "reason", "detail"))
        half = len(rows) // 2
        tables = {"rows/1": pa.Table.from_pylist(texts[:half]), "rows/2": pa.Table.from_pylist(texts[half:])}
        for path, table in {**tables, "rejects/1": left_out}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, folder / f"{path}.parquet")
        return folder, mix["manifest"] | {"rejects": Counter(f"{stage}/{reason}" for _, stage, reason, _ in rejects)}

    return write


def findings(folder: Path, manifest: dict) -> str:
    """The first paragraph of the README."""
    write_card(folder, manifest)
    text = (folder / "README.md").read_text().replace("\u00a0", " ")
    return " ".join(text.split("# by_hand\n\n")[1].split("\n\n")[0].split("\n"))


def test_the_figures_are_those_of_manifest_and_rows(mix, monkeypatch):
    for name in ("sft", "pairs"):
        card = json.loads(json.dumps(facts(*mix(name))))
        for path, value in yaml.safe_load(MIXES)[name]["facts"].items():
            assert at(card, path) == value, path
    sft = mix("sft")
    assert prepare()("Bring Ida some milk from Brask.")[0] == "en"  # not Nigerian Pidgin
    monkeypatch.setattr("hermes3.mix.card.SAMPLE", 210)  # more than the first file holds
    assert (facts(*sft)["sample"]["rows"], facts(*sft)["sample"]["with_system"]) == (210, 10 / 210)


@pytest.mark.parametrize("kind", ["sft", "pairs"])
def test_the_page_asks_nothing_of_the_network_and_has_both_themes(kind, mix):
    folder, manifest = mix(kind)
    write_card(folder, manifest)
    page, text = ((folder / name).read_text() for name in ("card.html", "README.md"))
    links = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']([^"']+)""", page)
    assert {link for link in links if not link.startswith("#")} == {"https://arxiv.org/abs/2408.11857"}
    assert not re.findall(r"@import|url\((?!#)|<script|<link|<iframe|figure:", page)
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    assert page.count("<svg") == page.count("<figcaption>") == (kind == "sft") and "pretty_name" not in page
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn), "a colour that does not follow the theme"
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) > 6
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    write_card(folder, manifest)
    assert page == (folder / "card.html").read_text()


def test_the_readme_says_first_what_is_wrong_and_the_hub_reads_its_head(mix):
    from huggingface_hub import DatasetCard

    folder, manifest = mix("sft")
    assert findings(folder, manifest) == (
        "300 conversations, 60,000 tokens as trained; the paper's mix has 390 M. 70.0 % bear loss, +1.0 points against "
        "the paper's 69 %. Math: 20,000 of 50,000 tokens. sums: half. Not searched for, of the paper's Table 5: BBH "
        "and GPQA. Sources are local files, known by their hashes in manifest.json."
    )
    text = (folder / "README.md").read_text()
    assert "| mmlu | 1 | 4 | 7 | 190 of 200 |" in text
    assert "| \\<script\\>alert(1)\\</script\\> \\*or\\* a \\| pipe |" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; *or* a" in (folder / "card.html").read_text()
    data = DatasetCard.load(folder / "README.md").data
    assert (data.license, data.language) == (["mit", "other"], ["en", "de"])
    first = data.configs[0]
    assert first["default"] and first["data_files"] == [{"split": "train", "path": "train/*.parquet"}]


def test_rows_that_do_not_add_up_and_sources_that_are_not_pinned_are_said(mix):
    folder, manifest = mix("sft")
    for read, step, n in ((200, "repeated", 43), (250, "unaccounted", -7)):
        manifest["sources"][0]["rows_read"] = read
        assert facts(folder, manifest)["funnel"][step] == n
        assert ("neither kept nor rejected" in findings(folder, manifest)) == (step == "unaccounted")
    manifest["sources"][0] |= {"path": None, "repo": "owner/sums"}
    declared = manifest["spec"]["categories"]["math"]["sources"][0]
    declared |= {"path": None, "repo": "owner/sums", "revision": "main"}
    assert "Sources are not locked" in findings(folder, manifest)
    assert "Sources are locked" in findings(folder, manifest | {"lock": {"sources": {}}})
    declared["revision"] = "0123456789" * 4
    assert "pinned to commits" in findings(folder, manifest)
    assert "No evaluation set was searched for." in findings(folder, manifest | {"unsearched": {}})
