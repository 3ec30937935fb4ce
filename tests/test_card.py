"""The card of a mix: every figure against one worked out by hand, and the pages that show them."""

import json
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hermes3.mix.card import facts, write_card

GERMAN = "Die Katze sitzt seit gestern Abend auf dem Dach und möchte nicht herunterkommen."
ENGLISH = "The harbour was quiet that morning, and the boats had not yet come home."
MARKUP = "<script>alert(1)</script> *or* a | pipe"
REJECTS = [
    *[("sums", "adapt", "empty_turn", MARKUP)] * 10,
    *[("sums", "dedup", "exact_duplicate", "of sums-1 in sums")] * 30,
    *[("plays", "filter", "refusal", "i am sorry")] * 20,
    *[("plays", "filter", "unterminated_code", "")] * 5,
    *[("plays", "decontaminate", "ngram", "gsm8k: the same words")] * 3,
    *[("sums", "decontaminate", "ngram", "gsm8k: other words")] * 2,
    *[("sums", "decontaminate", "ngram", "mmlu: words: with a colon")],
    *[("plays", "dedup", "near_duplicate", "0.9 of plays-1 in plays")] * 7,
]
NOTHING = {"rows": 0, "tokens": 0, "loss_tokens": 0}


def row(source: str, category: str, tokens: int, loss: int, turns: list[tuple[str, str]], **extra) -> dict:
    messages = [{"role": "system", "content": "Be brief."}] if extra.pop("system", False) else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    tools = [{"type": "function", "function": {"name": "clock"}}] if extra.pop("tools", False) else []
    counts = {"n_tokens": tokens, "n_loss_tokens": loss, "n_turns": len(turns)}
    texts = {"messages": json.dumps(messages, ensure_ascii=False), "tools": json.dumps(tools)}
    return {"source": source, "category": category, **counts, **texts, **extra}


def write_mix(folder: Path, kind: str, rows: list[dict], rejects: list[tuple], sources: dict[str, dict], **changes):
    """A folder and its manifest; `sources`: {name: category, rows_read, and what differs from the usual}."""
    for name in ("rows", "rejects"):
        (folder / name).mkdir(parents=True)
    half = len(rows) // 2  # two files, so that a sample has to read on
    for part, some in enumerate((rows[:half], rows[half:])):
        pq.write_table(pa.Table.from_pylist(some), folder / f"rows/part-{part:05d}.parquet")
    columns = list(zip(*rejects, strict=True)) or [[]] * 4
    names = ("source", "stage", "reason", "detail")
    pq.write_table(pa.table([pa.array(one, pa.string()) for one in columns], names), folder / "rejects/part.parquet")
    manifest = {"name": "by_hand", "kind": kind, "seed": 42, "sequence_len": 512, "versions": {"pyarrow": "26"}}
    manifest |= {"lock": None, "categories": {}, "sources": [], "total": dict(NOTHING), "not_searched": []}
    manifest |= {key: {"sha256": key * 9} for key in ("tokenizer", "template", "output")}
    manifest |= {key: {} for key in ("shortfalls", "unmet_weights", "unsearched", "shared", "planted")}
    for name, source in sources.items():
        of_source = [one for one in rows if one["source"] == name]
        sums = (len(of_source), *(sum(one[key] for one in of_source) for key in ("n_tokens", "n_loss_tokens")))
        own = dict(zip(NOTHING, sums, strict=True))
        manifest["total"] = {key: manifest["total"][key] + own[key] for key in own}
        manifest["categories"][source["category"]] = own | {"budget": source.pop("budget", None)}
        one = {"name": name, "path": "train/x.jsonl", "repo": None, "revision": None, "licence": "MIT", "rank": 1}
        manifest["sources"].append(one | own | {"rows_kept": own["rows"], "rows_not_selected": 0} | source)
    manifest["rejects"] = Counter(f"{stage}/{reason}" for _, stage, reason, _ in rejects)
    one = {"name": next(iter(sources)), "path": "x", "adapter": "messages" if kind == "sft" else kind, "licence": "x"}
    manifest["spec"] = {"name": "by_hand", "kind": kind, "tokenizer": "outputs/base", "sequence_len": 512, "seed": 42}
    manifest["spec"]["categories"] = {"math": {"sources": [one]}}
    return folder, manifest | changes


@pytest.fixture
def sft(tmp_path) -> tuple[Path, dict]:
    """200 mathematics rows of 100 tokens (60 bear loss), 100 roleplay rows of 400 (300 bear loss), in turn."""
    rows = []
    for i in range(100):
        turns = [(GERMAN if i % 10 == 0 else f"Question {i}: {ENGLISH}", GERMAN if i % 10 == 0 else ENGLISH)] * 2
        rows += [row("sums", "math", 100, 60, [(f"Sum {2 * i + j}. {ENGLISH}", ENGLISH)]) for j in (0, 1)]
        rows.append(row("plays", "roleplaying", 400, 300, turns, system=i < 40, tools=i < 25))
    sums = {"category": "math", "rows_read": 243, "budget": 50_000}
    plays = {"category": "roleplaying", "rows_read": 135, "budget": 40_000, "licence": "none stated", "rank": 2}
    more = {"shortfalls": {"math": "20,000 of 50,000 tokens"}, "unmet_weights": {"sums": "half"}}
    more |= {"unsearched": {"mmlu": 4, "gsm8k": 0}, "shared": {"mmlu": 7, "gsm8k": 0}, "not_searched": ["BBH", "GPQA"]}
    more["planted"] = dict.fromkeys(("mmlu", "gsm8k"), {"planted": 200, "found": 190})
    return write_mix(tmp_path / "mix", "sft", rows, REJECTS, {"sums": sums, "plays": plays}, **more)


@pytest.fixture
def pairs(tmp_path) -> tuple[Path, dict]:
    """40 pairs: prompts of 3 words, chosen answers of 2 and 6 words by turns, rejected ones of 4."""
    rows = []
    for i in range(40):
        answers = {"chosen": "It is so, and stays so." if i % 2 else "Quite so.", "rejected": "No idea at all."}
        extra = {side: json.dumps({"role": "assistant", "content": text}) for side, text in answers.items()}
        extra["messages"] = json.dumps([{"role": "user", "content": f"Really so, {i}?"}])
        rows.append(row("pairs", "general_instructions", 64, 24, [("Is it so?", "")]) | extra)
    sources = {"pairs": {"category": "general_instructions", "rows_read": 40}}
    return write_mix(tmp_path / "pairs", "preference", rows, [], sources)


def findings(folder: Path, manifest: dict) -> str:
    """The first paragraph of the README."""
    write_card(folder, manifest)
    text = (folder / "README.md").read_text().replace("\u00a0", " ")
    return " ".join(text.split("# by_hand\n\n")[1].split("\n\n")[0].split("\n"))


def test_the_figures_are_those_of_manifest_and_rows(sft, pairs, monkeypatch):
    card = facts(*sft)
    by_key = {one["key"]: one for one in card["categories"]}
    assert len(by_key) == 8 and by_key["coding"]["rows"] == 0
    math, plays = by_key["math"], by_key["roleplaying"]
    assert (math["rows"], math["share"], math["loss_share"], math["paper_share"]) == (200, 1 / 3, 0.6, 0.067)
    assert (math["budget"], math["shortfall"]) == (50_000, "20,000 of 50,000 tokens") and plays["shortfall"] is None
    steps = {"rows read": 378, "adapt": -10, "filter": -25, "decontaminate": -6, "dedup": -37, "rows kept": 300}
    assert card["funnel"] == steps
    rejects = [tuple(one.values()) for one in card["left_out"]]
    assert len(rejects) == 7 and rejects[0] == ("adapt", "empty_turn", "sums", 10, MARKUP)
    assert rejects[4] == ("decontaminate", "ngram", "sums", 3, "gsm8k: other words")
    assert card["contaminated"] == {"gsm8k": 5, "mmlu": 1}
    for one, length in zip(card["lengths"]["categories"], (100, 400), strict=True):
        assert (one["median"], one["p5"], one["longest"], one["mean"]) == (length, length, length, length)
        (place,) = [place for place, share in enumerate(one["shares"]) if share]
        assert one["shares"][place] == 1 and place <= one["median_at"] < place + 1
    assert card["turns"] == [(1, 200), (2, 100)] and card["with_tools"] == 25 / 300
    assert card["sample"]["languages"] == [("en", 290), ("de", 10)] and card["sample"]["with_system"] == 40 / 300
    monkeypatch.setattr("hermes3.mix.card.SAMPLE", 180)  # more than the first file holds
    assert (facts(*sft)["sample"]["rows"], facts(*sft)["sample"]["with_system"]) == (180, 40 / 180)
    card = facts(*pairs)
    assert [(one["key"], one["paper_share"]) for one in card["categories"]] == [("general_instructions", None)]
    assert card["sample"]["sides"] == {"prompt": 3, "chosen": 4, "rejected": 4, "chosen_longer": 0.5}


@pytest.mark.parametrize("kind", ["sft", "pairs"])
def test_the_page_asks_nothing_of_the_network_and_has_both_themes(kind, request):
    folder, manifest = request.getfixturevalue(kind)
    write_card(folder, manifest)
    page, text = ((folder / name).read_text() for name in ("card.html", "README.md"))
    links = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']([^"']+)""", page)
    assert {link for link in links if not link.startswith("#")} == {"https://arxiv.org/abs/2408.11857"}
    assert not re.findall(r"@import|url\((?!#)|<script|<link|<iframe|figure:", page)
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    assert page.count("<svg") == page.count("<figcaption>") == (2 if kind == "sft" else 1)
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn), "a colour that does not follow the theme"
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) > 6
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    write_card(folder, manifest)
    assert (page, text) == tuple((folder / name).read_text() for name in ("card.html", "README.md"))


def test_the_readme_says_first_what_is_wrong_and_the_hub_reads_its_head(sft):
    from huggingface_hub import DatasetCard

    folder, manifest = sft
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


def test_rows_that_do_not_add_up_and_sources_that_are_not_pinned_are_said(sft):
    folder, manifest = sft
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
