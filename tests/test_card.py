"""The card of a mix: every figure against one worked out by hand, and the pages that show them."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hermes3.mix import card_sample
from hermes3.mix.card import analyse
from hermes3.mix.card_page import verdict, write_card
from hermes3.stats import wilson

COLUMNS = ("id", "source", "stage", "reason", "detail")
REFUSAL = "I'm sorry, but as an AI language model I cannot help with that."
GERMAN = "Die Katze sitzt seit gestern Abend auf dem Dach und möchte nicht herunterkommen."
ENGLISH = "The harbour was quiet that morning, and the boats had not yet come home."
MARKUP = "<script>alert(1)</script> or a | pipe"


def row(index: int, source: str, category: str, tokens: int, loss: int, turns: list[tuple[str, str]], **extra) -> dict:
    messages = [{"role": "system", "content": "Be brief."}] if extra.pop("system", False) else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    tools = [{"type": "function", "function": {"name": "clock"}}] if extra.pop("tools", False) else []
    return {
        "id": f"{source}-{index}",
        "source": source,
        "category": category,
        "n_tokens": tokens,
        "n_loss_tokens": loss,
        "hash": f"{category[:1]}{index:063d}",
        "n_turns": len(turns),
        "messages": json.dumps(messages, ensure_ascii=False),
        "tools": json.dumps(tools),
        **extra,
    }


def sft_rows() -> list[dict]:
    """200 mathematics rows of 100 tokens (60 bear loss), 100 roleplay rows of 400 (300 bear loss), in turn."""
    rows = []
    for i in range(100):
        answer = {0: GERMAN, 1: REFUSAL, 2: MARKUP}.get(i % 10, f"You asked me about number {i}. {ENGLISH}")
        turns = [(GERMAN if i % 10 == 0 else f"Question {i}: {ENGLISH}", answer), (f"And then {i}?", f"Nothing {i}.")]
        rows += [row(2 * i + j, "sums", "math", 100, 60, [(f"Sum {2 * i + j}. {ENGLISH}", ENGLISH)]) for j in (0, 1)]
        rows.append(row(i, "plays", "roleplaying", 400, 300, turns, system=i < 40, tools=i < 25))
    return rows


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


def write_mix(folder: Path, rows: list[dict], rejects: list[tuple], manifest: dict) -> dict:
    for name in ("rows", "rejects"):
        (folder / name).mkdir(parents=True)
    half = len(rows) // 2  # two files, so that a sample has to read on
    for part, some in enumerate((rows[:half], rows[half:])):
        pq.write_table(pa.Table.from_pylist(some), folder / f"rows/part-{part:05d}.parquet")
    table = [dict(zip(COLUMNS, (f"r{i}", *reject), strict=True)) for i, reject in enumerate(rejects)]
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    pq.write_table(pa.Table.from_pylist(table, schema=schema), folder / "rejects/part-00000.parquet")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def source(name: str, category: str, rank: int, read: int, licence: str) -> dict:
    files = {f"train/{name}.jsonl": "ab" * 32}
    place = {"path": f"train/{name}.jsonl", "revision": None}
    return {
        "name": name,
        "category": category,
        "licence": licence,
        "rank": rank,
        "rows_read": read,
        "rows_not_selected": 0,
        "files": files,
    } | place


def spec(kind: str, *names: str) -> dict:
    adapter = "messages" if kind == "sft" else "preference"
    sources = [{"name": name, "path": name, "adapter": adapter, "licence": "MIT"} for name in names]
    fixed = {"name": "by_hand", "kind": kind, "tokenizer": "outputs/base", "sequence_len": 512, "seed": 42}
    return fixed | {"categories": {"math": {"sources": sources}}}


def sft_manifest(**change) -> dict:
    return {
        "name": "by_hand",
        "kind": "sft",
        "seed": 42,
        "sequence_len": 512,
        "spec": spec("sft", "sums", "plays"),
        "tokenizer": {"path": "outputs/base", "sha256": "12" * 32},
        "template": {"sha256": "34" * 32},
        "versions": {"pyarrow": "26"},
        "lock": None,
        "sources": [source("sums", "math", 1, 243, "MIT"), source("plays", "roleplaying", 2, 135, "none stated")],
        "categories": {"math": {"budget": 50_000}, "roleplaying": {"budget": 40_000}},
        "total": {"rows": 300, "tokens": 60_000, "loss_tokens": 42_000},
        "shortfalls": {"math": "20,000 of 50,000 tokens"},
        "unsearched": {"mmlu": 4, "gsm8k": 0},
        "output": {"sha256": "56" * 32, "files": {}},
        **change,
    }


@pytest.fixture
def sft(tmp_path) -> tuple[Path, dict]:
    return tmp_path / "mix", write_mix(tmp_path / "mix", sft_rows(), REJECTS, sft_manifest())


@pytest.fixture
def pairs(tmp_path) -> tuple[Path, dict]:
    """40 pairs: prompts of 3 words, chosen answers of 2 and 6 words by turns, rejected ones of 4."""
    said = {"short": "Quite so.", "long": "It is so, and stays so.", "rejected": "No idea at all."}
    rows = []
    for i in range(40):
        answers = {"chosen": said["long" if i % 2 else "short"], "rejected": said["rejected"]}
        extra = {side: json.dumps({"role": "assistant", "content": text}) for side, text in answers.items()}
        one = row(i, "pairs", "general_instructions", 64, 24, [("Is it so?", "")], **extra)
        rows.append(one | {"messages": json.dumps([{"role": "user", "content": f"Really so, {i}?"}])})
    manifest = sft_manifest(
        kind="preference",
        spec=spec("preference", "pairs"),
        sources=[source("pairs", "general_instructions", 1, 40, "MIT")],
        categories={"general_instructions": {"budget": None}},
        total={"rows": 40, "tokens": 2560, "loss_tokens": 960},
        shortfalls={},
        unsearched={},
    )
    return tmp_path / "pairs", write_mix(tmp_path / "pairs", rows, [], manifest)


def test_categories_and_sources_hold_the_counts_of_their_rows(sft):
    card = analyse(*sft)
    assert card["total"] == {"rows": 300, "tokens": 60_000, "loss_tokens": 42_000, "loss_share": 0.7}
    by_key = {one["key"]: one for one in card["categories"]}
    assert len(by_key) == 8 and by_key["coding"]["rows"] == 0
    math, plays = by_key["math"], by_key["roleplaying"]
    assert (math["rows"], math["tokens"], math["loss_tokens"], math["share"]) == (200, 20_000, 12_000, 1 / 3)
    assert (math["loss_share"], math["paper_share"], math["budget"]) == (0.6, 0.067, 50_000)
    assert (plays["rows"], plays["tokens"], plays["loss_share"], plays["shortfall"]) == (100, 40_000, 0.75, None)
    assert [(one["name"], one["rows_read"], one["rows"], one["tokens"]) for one in card["sources"]] == [
        ("sums", 243, 200, 20_000),
        ("plays", 135, 100, 40_000),
    ]
    assert [(one["rank"], one["rows"], one["tokens"]) for one in card["ranks"]] == [(1, 200, 20_000), (2, 100, 40_000)]


def test_every_row_read_is_kept_or_taken_away_by_a_stage(sft):
    card = analyse(*sft)
    steps = [(step["step"], step["rows"]) for step in card["funnel"]]
    assert steps == [
        ("rows read", 378),
        ("adapt", -10),
        ("filter", -25),
        ("decontaminate", -6),
        ("dedup", -37),
        ("rows kept", 300),
    ]
    assert card["left_out"]["plays"] == {
        "filter/refusal": 20,
        "filter/unterminated_code": 5,
        "decontaminate/ngram": 3,
        "dedup/near_duplicate": 7,
    }


@pytest.mark.parametrize(("read", "step", "rows"), [(200, "repeated", 43), (250, "unaccounted", -7)])
def test_rows_that_do_not_add_up_are_shown(sft, read, step, rows):
    folder, manifest = sft
    manifest["sources"][0]["rows_read"] = read
    card = analyse(folder, manifest)
    assert {"step": step, "rows": rows} in card["funnel"]
    assert ("neither kept nor rejected" in verdict(card, manifest)) == (step == "unaccounted")


def test_rejects_have_an_example_and_contamination_names_its_evaluation_set(sft):
    card = analyse(*sft)
    found = {(one["stage"], one["reason"]): (one["rows"], one["example"]) for one in card["rejects"]}
    assert found["adapt", "empty_turn"] == (10, "user says nothing")
    assert found["filter", "unterminated_code"] == (5, "")
    assert list(found)[0] == ("adapt", "empty_turn") and list(found)[-1] == ("dedup", "near_duplicate")
    assert card["contaminated"] == [
        {"source": "plays", "eval_set": "gsm8k", "rows": 3},
        {"source": "sums", "eval_set": "gsm8k", "rows": 2},
        {"source": "sums", "eval_set": "mmlu", "rows": 1},
    ]


def test_refusals_are_counted_before_and_after_the_filter(sft):
    sums, plays = analyse(*sft)["refusals"]
    assert (sums["reached"], sums["dropped"], sums["kept"]["k"]) == (233, 0, 0)
    assert (plays["reached"], plays["dropped"], plays["rate"]) == (135, 20, 20 / 135)
    assert (plays["kept"]["k"], plays["kept"]["n"], plays["kept"]["low"]) == (10, 100, None)


def test_lengths_and_turns_are_those_of_the_rows(sft):
    card = analyse(*sft)
    edges = card["lengths"]["edges"]
    for name, length, n in (("math", 100, 200), ("roleplaying", 400, 100)):
        one = card["lengths"]["categories"][name]
        assert (one["median"], one["p5"], one["longest"], one["mean"]) == (length, length, length, length)
        (place,) = [place for place, count in enumerate(one["bins"]) if count]
        assert one["bins"][place] == n and edges[place] <= length < edges[place + 1]
    assert card["turns"]["counts"] == {"1": 200, "2": 100} | dict.fromkeys([*map(str, range(3, 12)), "12+"], 0)
    assert card["turns"]["mean"] == pytest.approx(4 / 3)
    assert card["with_tools"] == 25 / 300


def test_text_of_a_small_mix_is_read_whole(sft):
    sample = analyse(*sft)["sample"]
    assert (sample["rows"], sample["of"]) == (300, 300)
    assert {one["language"]: one["k"] for one in sample["languages"]} == {"en": 290, "de": 10}
    assert (sample["with_system"]["share"], sample["with_system"]["low"]) == (40 / 300, None)
    first, second = sample["openings"]["assistant"][:2]
    assert first == {"opening": "the harbour was quiet", "k": 200, "share": 0.5}
    assert second["opening"] == "you asked me about" and second["k"] == 70
    assert all(one["k"] > 1 for one in sample["openings"]["user"])


def test_a_sample_is_the_first_rows_and_has_intervals(sft, monkeypatch):
    monkeypatch.setattr(card_sample, "SAMPLE", 180)  # more than the first file holds
    card = analyse(*sft)
    assert (card["sample"]["rows"], card["sample"]["of"]) == (180, 300)
    system = card["sample"]["with_system"]
    assert (system["k"], system["n"]) == (40, 180) and (system["low"], system["high"]) == wilson(40, 180)
    assert card["total"]["rows"] == 300


def test_a_preference_mix_has_lengths_of_its_sides_and_no_paper(pairs):
    card = analyse(*pairs)
    assert card["paper"] is None and [one["key"] for one in card["categories"]] == ["general_instructions"]
    assert card["categories"][0]["paper_share"] is None
    assert card["sample"]["sides"] == {"prompt": 3, "chosen": 4, "rejected": 4, "chosen_longer": 0.5}
    assert {one["opening"] for one in card["sample"]["openings"]["assistant"]} == {"quite so.", "it is so, and"}


def test_a_manifest_of_another_build_is_refused(sft):
    folder, manifest = sft
    manifest["total"]["tokens"] += 1
    with pytest.raises(ValueError, match="60000.*60001.*build the mix again"):
        analyse(folder, manifest)


@pytest.mark.parametrize("kind", ["sft", "pairs"])
def test_the_page_asks_nothing_of_the_network_and_has_both_themes(kind, request):
    folder, manifest = request.getfixturevalue(kind)
    write_card(folder, manifest)
    page = (folder / "card.html").read_text()
    links = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']([^"']+)""", page)
    assert {link for link in links if not link.startswith("#")} == {"https://arxiv.org/abs/2408.11857"}
    assert not re.findall(r"@import|url\((?!#)|<script|<link|<iframe", page)
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    assert page.count("<svg") == (4 if kind == "sft" else 3)
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn), "a colour that does not follow the theme"


def test_the_page_shows_what_data_says_as_text(sft):
    folder, manifest = sft
    write_card(folder, manifest)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; or" in (folder / "card.html").read_text()
    card = (folder / "card.md").read_text()
    assert "| &lt;script>alert(1)&lt;/script> or a \\| | 10 |" in card


def test_the_verdict_comes_first(sft):
    folder, manifest = sft
    write_card(folder, manifest)
    text = (folder / "card.md").read_text().replace("\u00a0", " ")
    first = text.split("# by_hand\n\n")[1].split("\n")[0]
    assert first == (
        "300 conversations, 60,000 tokens as trained; the paper's mix has 390 M. 70.0 % bear loss, +1.0 points against "
        "the paper's 69 %. Math: 20,000 of 50,000 tokens. Sources are local files, known by the hashes below."
    )


def test_the_verdict_says_whether_sources_are_locked(sft):
    folder, manifest = sft
    card = analyse(folder, manifest)
    assert "Sources are local files" in verdict(card, manifest)
    manifest["sources"][0] |= {"path": None, "repo": "owner/sums"}
    declared = manifest["spec"]["categories"]["math"]["sources"][0]
    declared |= {"path": None, "repo": "owner/sums", "revision": "main"}
    assert "Sources are not locked" in verdict(card, manifest)
    assert "Sources are locked" in verdict(card, manifest | {"lock": {"sources": {}}})
    declared["revision"] = "0123456789" * 4
    assert "pinned to commits" in verdict(card, manifest)


def test_the_hub_reads_the_front_matter(sft):
    from huggingface_hub import DatasetCard

    folder, manifest = sft
    write_card(folder, manifest)
    data = DatasetCard.load(folder / "card.md").data
    assert (data.license, data.language, data.size_categories) == (["mit", "other"], ["en", "de"], "n<1K")
    first = data.configs[0]
    assert first["default"] and first["data_files"] == [{"split": "train", "path": "train/*.parquet"}]


def test_tables_of_the_markdown_card_have_as_many_cells_in_every_row(sft):
    folder, manifest = sft
    write_card(folder, manifest)
    tables = re.findall(r"(?:^\|.*\n)+", (folder / "card.md").read_text(), re.MULTILINE)
    assert len(tables) > 8
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_the_same_mix_gives_the_same_bytes(sft):
    folder, manifest = sft
    written = []
    for _ in range(2):
        write_card(folder, manifest)
        written.append([(folder / name).read_bytes() for name in ("card.md", "card.html")])
    assert written[0] == written[1]
    json.dumps(analyse(folder, manifest), allow_nan=False)
