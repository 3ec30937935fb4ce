"""The card of a mix: every figure against one worked out by hand, and the pages that show them."""

import json
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hermes3.mix.card import facts, write_card
from hermes3.stats import wilson

REFUSAL = "I'm sorry, but as an AI language model I cannot help with that."
GERMAN = "Die Katze sitzt seit gestern Abend auf dem Dach und möchte nicht herunterkommen."
ENGLISH = "The harbour was quiet that morning, and the boats had not yet come home."
MARKUP = "<script>alert(1)</script> *or* a | pipe"
REJECTS = [
    *[("sums", "adapt", "empty_turn", "user says nothing")] * 10,
    *[("sums", "dedup", "exact_duplicate", "of sums-1 in sums")] * 30,
    *[("plays", "filter", "refusal", "i am sorry")] * 20,
    *[("plays", "filter", "unterminated_code", "")] * 5,
    *[("plays", "decontaminate", "ngram", "gsm8k: the same words")] * 3,
    *[("sums", "decontaminate", "ngram", "gsm8k: other words")] * 2,
    *[("sums", "decontaminate", "ngram", "mmlu: words: with a colon")],
    *[("plays", "dedup", "near_duplicate", "0.9 of plays-1 in plays")] * 7,
]


def row(source: str, category: str, tokens: int, loss: int, turns: list[tuple[str, str]], **extra) -> dict:
    messages = [{"role": "system", "content": "Be brief."}] if extra.pop("system", False) else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    tools = [{"type": "function", "function": {"name": "clock"}}] if extra.pop("tools", False) else []
    texts = {"messages": json.dumps(messages, ensure_ascii=False), "tools": json.dumps(tools)}
    counts = {"n_tokens": tokens, "n_loss_tokens": loss, "n_turns": len(turns)}
    return {"source": source, "category": category, **counts, **texts, **extra}


def write_mix(folder: Path, kind: str, rows: list[dict], rejects: list[tuple], sources: list[dict], **changes):
    """A folder and its manifest; `sources`: name, category, rows_read, budget and what differs from the usual."""
    for name in ("rows", "rejects"):
        (folder / name).mkdir(parents=True)
    half = len(rows) // 2  # two files, so that a sample has to read on
    for part, some in enumerate((rows[:half], rows[half:])):
        pq.write_table(pa.Table.from_pylist(some), folder / f"rows/part-{part:05d}.parquet")
    schema = pa.schema([(name, pa.string()) for name in ("source", "stage", "reason", "detail")])
    table = pa.Table.from_pylist([dict(zip(schema.names, one, strict=True)) for one in rejects], schema=schema)
    pq.write_table(table, folder / "rejects/part-00000.parquet")
    why = Counter((source, f"{stage}/{reason}") for source, stage, reason, _ in rejects)
    counts = {"rows": 0, "tokens": 0, "loss_tokens": 0}
    manifest = {"name": "by_hand", "kind": kind, "seed": 42, "sequence_len": 512, "versions": {"pyarrow": "26"}}
    manifest |= {"lock": None, "total": dict(counts), "categories": {}, "sources": []}
    for source in sources:
        own = [one for one in rows if one["source"] == source["name"]]
        values = (len(own), *(sum(one[key] for one in own) for key in ("n_tokens", "n_loss_tokens")))
        own = dict(zip(counts, values, strict=True))
        manifest["total"] = {key: manifest["total"][key] + own[key] for key in counts}
        manifest["categories"][source["category"]] = own | {"budget": source.pop("budget", None)}
        place = {"path": "train/x.jsonl", "repo": None, "revision": None, "licence": "MIT", "rank": 1}
        lost = {reason: n for (name, reason), n in why.items() if name == source["name"]}
        kept = {"rows_kept": own["rows"], "rows_not_selected": 0, "rejects": lost, **own}
        manifest["sources"].append(place | kept | source)
    manifest["rejects"] = dict(sorted(Counter(f"{stage}/{reason}" for _, stage, reason, _ in rejects).items()))
    adapter = "messages" if kind == "sft" else kind
    declared = {"name": "by_hand", "kind": kind, "tokenizer": "outputs/base", "sequence_len": 512, "seed": 42}
    one = {"name": sources[0]["name"], "path": "x", "adapter": adapter, "licence": "MIT"}
    manifest["spec"] = declared | {"categories": {"math": {"sources": [one]}}}
    manifest |= {key: {"sha256": key * 9} for key in ("tokenizer", "template", "output")}
    manifest |= {"shortfalls": {}, "unmet_weights": {}, "unsearched": {}, "shared": {}, "not_searched": []}
    return folder, manifest | changes


@pytest.fixture
def sft(tmp_path) -> tuple[Path, dict]:
    """200 mathematics rows of 100 tokens (60 bear loss), 100 roleplay rows of 400 (300 bear loss), in turn."""
    rows = []
    for i in range(100):
        answer = {0: GERMAN, 1: REFUSAL, 2: MARKUP}.get(i % 10, f"You asked me about number {i}. {ENGLISH}")
        turns = [(GERMAN if i % 10 == 0 else f"Question {i}: {ENGLISH}", answer), (f"And then {i}?", f"Nothing {i}.")]
        rows += [row("sums", "math", 100, 60, [(f"Sum {2 * i + j}. {ENGLISH}", ENGLISH)]) for j in (0, 1)]
        rows.append(row("plays", "roleplaying", 400, 300, turns, system=i < 40, tools=i < 25))
    sums = {"name": "sums", "category": "math", "rows_read": 243, "budget": 50_000}
    plays = {"name": "plays", "category": "roleplaying", "rows_read": 135, "budget": 40_000}
    sources = [sums, plays | {"licence": "none stated", "rank": 2}]
    more = {"shortfalls": {"math": "20,000 of 50,000 tokens"}, "unmet_weights": {"sums": "half"}}
    more |= {"unsearched": {"mmlu": 4, "gsm8k": 0}, "shared": {"mmlu": 7, "gsm8k": 0}, "not_searched": ["BBH", "GPQA"]}
    return write_mix(tmp_path / "mix", "sft", rows, REJECTS, sources, **more)


@pytest.fixture
def pairs(tmp_path) -> tuple[Path, dict]:
    """40 pairs: prompts of 3 words, chosen answers of 2 and 6 words by turns, rejected ones of 4."""
    rows = []
    for i in range(40):
        answers = {"chosen": "It is so, and stays so." if i % 2 else "Quite so.", "rejected": "No idea at all."}
        extra = {side: json.dumps({"role": "assistant", "content": text}) for side, text in answers.items()}
        extra["messages"] = json.dumps([{"role": "user", "content": f"Really so, {i}?"}])
        rows.append(row("pairs", "general_instructions", 64, 24, [("Is it so?", "")]) | extra)
    source = {"name": "pairs", "category": "general_instructions", "rows_read": 40}
    return write_mix(tmp_path / "pairs", "preference", rows, [], [source])


def test_composition_and_rejects_are_those_of_the_manifest(sft):
    card = facts(*sft)
    assert card["total"]["loss_share"] == 0.7
    by_key = {one["key"]: one for one in card["categories"]}
    assert len(by_key) == 8 and by_key["coding"]["rows"] == 0
    math, plays = by_key["math"], by_key["roleplaying"]
    assert (math["rows"], math["share"], math["loss_share"], math["paper_share"]) == (200, 1 / 3, 0.6, 0.067)
    assert (math["budget"], math["shortfall"]) == (50_000, "20,000 of 50,000 tokens") and plays["shortfall"] is None
    assert card["stages"] == ["adapt", "filter", "decontaminate", "exact duplicate", "near duplicate"]
    assert [one["by_stage"] for one in card["sources"]] == [[10, 0, 3, 30, 0], [0, 25, 3, 0, 7]]
    steps = {"rows read": 378, "adapt": -10, "filter": -25, "decontaminate": -6, "dedup": -37, "rows kept": 300}
    assert {step["step"]: step["rows"] for step in card["funnel"]} == steps
    rejects = {(one["stage"], one["reason"]): (one["rows"], one["example"]) for one in card["rejects"]}
    assert rejects["adapt", "empty_turn"] == (10, "user says nothing")
    assert rejects["filter", "unterminated_code"][1] is None
    assert list(rejects)[0] == ("adapt", "empty_turn") and list(rejects)[-1] == ("dedup", "near_duplicate")
    contaminated = [(one["eval_set"], one["source"], one["rows"]) for one in card["contaminated"]]
    assert contaminated == [("gsm8k", "plays", 3), ("gsm8k", "sums", 2), ("mmlu", "sums", 1)]
    sums, plays = card["refusals"]
    assert (sums["reached"], sums["dropped"], sums["kept"]["k"]) == (233, 0, 0)
    assert (plays["reached"], plays["dropped"], plays["rate"]) == (135, 20, 20 / 135)
    assert (plays["kept"]["k"], plays["kept"]["n"], plays["kept"]["low"]) == (10, 100, None)


def test_lengths_and_turns_are_those_of_the_rows(sft):
    card = facts(*sft)
    edges = card["lengths"]["edges"]
    for one, length, n in zip(card["lengths"]["categories"], (100, 400), (200, 100), strict=True):
        assert (one["median"], one["p5"], one["longest"], one["mean"]) == (length, length, length, length)
        (place,) = [place for place, count in enumerate(one["bins"]) if count]
        assert one["bins"][place] == n and edges[place] <= length < edges[place + 1]
    assert card["turns"]["counts"] == {"1": 200, "2": 100} | dict.fromkeys([*map(str, range(3, 12)), "12+"], 0)
    assert card["turns"]["mean"] == pytest.approx(4 / 3)
    assert card["with_tools"] == 25 / 300


def test_text_is_read_of_a_sample_which_has_intervals_unless_it_is_the_whole(sft, pairs, monkeypatch):
    sample = facts(*sft)["sample"]
    assert (sample["rows"], sample["of"]) == (300, 300)
    assert {one["language"]: one["k"] for one in sample["languages"]} == {"en": 290, "de": 10}
    assert (sample["with_system"]["share"], sample["with_system"]["low"]) == (40 / 300, None)
    first, second = sample["openings"]["assistant"][:2]
    assert first == {"opening": "the harbour was quiet", "k": 200, "share": 0.5}
    assert second["opening"] == "you asked me about" and second["k"] == 70
    assert all(one["k"] > 1 for one in sample["openings"]["user"])
    monkeypatch.setattr("hermes3.mix.card.SAMPLE", 180)  # more than the first file holds
    sample = facts(*sft)["sample"]
    system = sample["with_system"]
    assert (sample["rows"], sample["of"], system["k"], system["n"]) == (180, 300, 40, 180)
    assert (system["low"], system["high"]) == wilson(40, 180)
    card = facts(*pairs)
    assert [(one["key"], one["paper_share"]) for one in card["categories"]] == [("general_instructions", None)]
    assert card["sample"]["sides"] == {"prompt": 3, "chosen": 4, "rejected": 4, "chosen_longer": 0.5}
    assert {one["opening"] for one in card["sample"]["openings"]["assistant"]} == {"quite so.", "it is so, and"}


@pytest.mark.parametrize("kind", ["sft", "pairs"])
def test_the_page_asks_nothing_of_the_network_and_has_both_themes(kind, request):
    folder, manifest = request.getfixturevalue(kind)
    write_card(folder, manifest)
    page, text = ((folder / name).read_text() for name in ("card.html", "README.md"))
    links = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']([^"']+)""", page)
    assert {link for link in links if not link.startswith("#")} == {"https://arxiv.org/abs/2408.11857"}
    assert not re.findall(r"@import|url\((?!#)|<script|<link|<iframe|figure:", page)
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    assert page.count("<svg") == page.count("<figcaption>") == (3 if kind == "sft" else 2)
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
    write_card(folder, manifest)
    text = (folder / "README.md").read_text().replace("\u00a0", " ")
    assert text.split("# by_hand\n\n")[1].split("\n")[0] == (
        "300 conversations, 60,000 tokens as trained; the paper's mix has 390 M. 70.0 % bear loss, +1.0 points against "
        "the paper's 69 %. Math: 20,000 of 50,000 tokens. sums: half. Not searched for, of the paper's Table 5: BBH "
        "and GPQA. Sources are local files, known by their hashes in manifest.json."
    )
    assert "| \\<script\\>alert(1)\\</script\\> \\*or\\* a \\| | 10 |" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; *or* a" in (folder / "card.html").read_text()
    data = DatasetCard.load(folder / "README.md").data
    assert (data.license, data.language) == (["mit", "other"], ["en", "de"])
    first = data.configs[0]
    assert first["default"] and first["data_files"] == [{"split": "train", "path": "train/*.parquet"}]


def test_rows_that_do_not_add_up_and_sources_that_are_not_pinned_are_said(sft):
    folder, manifest = sft
    for read, step, n in ((200, "repeated", 43), (250, "unaccounted", -7)):
        manifest["sources"][0]["rows_read"] = read
        card = facts(folder, manifest)
        assert {"step": step, "rows": n} in card["funnel"]
        assert ("neither kept nor rejected" in card["findings"]) == (step == "unaccounted")
    manifest["sources"][0] |= {"path": None, "repo": "owner/sums"}
    declared = manifest["spec"]["categories"]["math"]["sources"][0]
    declared |= {"path": None, "repo": "owner/sums", "revision": "main"}
    assert "Sources are not locked" in facts(folder, manifest)["findings"]
    assert "Sources are locked" in facts(folder, manifest | {"lock": {"sources": {}}})["findings"]
    declared["revision"] = "0123456789" * 4
    assert "pinned to commits" in facts(folder, manifest)["findings"]
    assert "No evaluation set was searched for." in facts(folder, manifest | {"unsearched": {}})["findings"]
