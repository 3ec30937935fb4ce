"""Generated conversations for the full-size benchmark: `python bench/generate.py --tokens 390e6 --out FOLDER`.

One jsonl a category, in the paper's shares, and a spec over them with every stage on. Answer lengths are log-normal
(medians by category; the mean of 400 tokens a conversation is that of the released data, 380 M tokens in 959 K rows).
Sentences come from real answers where they are beside the repository, else from common words: words, code and
punctuation weigh as they do there, and a row draws so many at random that no two rows are alike. Stated shares of rows
are copies, near-copies, refusals, broken, or hold evaluation text.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from hermes3.mix.spec import CATEGORIES

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data"
CHARS_A_TOKEN = 4.0  # of the pieces below, with Llama 3.1's vocabulary
MEDIAN = {"coding": 350, "tool_use_agentic_rag": 450, "roleplaying": 300, "content_generation": 450}  # tokens; else 220
SIGMA = 0.8  # of the logarithm: a mean 1.38 times the median, one row in a thousand above 12 times
SHARES = {"copy": 0.02, "near": 0.02, "refusal": 0.01, "broken": 0.001, "contaminated": 0.0005}
ADAPTERS = ("messages", "sharegpt", "instruction", "question_answer")
BATCH = 20_000  # rows


def main() -> None:
    """Write the files and the spec."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, default=Path("outputs/bench/hermes"))
    args = parser.parse_args()
    print(generate(int(args.tokens), args.out, args.tokenizer))


def generate(tokens: int, out: Path, tokenizer: Path) -> Path:
    """Write about `tokens` tokens and one part in ten more, so that budgets bind; return the spec's path."""
    out.mkdir(parents=True, exist_ok=True)
    pieces, evaluation = real_pieces()
    (out / "evaluation.jsonl").write_text("".join(json.dumps({"q": text}) + "\n" for text in evaluation))
    total = sum(percent for _, percent in CATEGORIES.values())
    categories = {}
    for number, (key, (_, percent)) in enumerate(CATEGORIES.items()):
        adapter = ADAPTERS[number % len(ADAPTERS)]
        rng = np.random.default_rng(number)
        with (out / f"{key}.jsonl").open("w", encoding="utf-8") as file:
            for text in rows(key, adapter, 1.1 * tokens * percent / total, pieces, evaluation, rng):
                file.write(text)
        source = {"name": key, "path": f"{key}.jsonl", "adapter": adapter, "licence": "generated"}
        categories[key] = {"percent": percent, "sources": [source]}
    spec = {
        "name": "bench",
        "kind": "sft",
        "tokenizer": str(tokenizer),
        "sequence_len": 8192,
        "seed": 42,
        "tokens": tokens,
        "near_duplicates": {"threshold": 0.8},
        "decontaminate": {"against": [{"path": "evaluation.jsonl"}]},
        "categories": categories,
    }
    (out / "bench.yml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return out / "bench.yml"


def rows(
    key: str, adapter: str, tokens: float, pieces: np.ndarray, evaluation: list[str], rng: np.random.Generator
) -> Iterator[str]:
    """Lines of JSON, some `tokens` tokens in all."""
    lengths = np.array([len(piece) for piece in pieces])
    made, number = 0.0, 0
    while made < tokens:
        chars = CHARS_A_TOKEN * MEDIAN.get(key, 220) * rng.lognormal(0, SIGMA, BATCH)
        n_pieces = np.maximum(1, (chars / lengths.mean()).astype(int))
        drawn = pieces[rng.integers(0, len(pieces), n_pieces.sum() + 2 * BATCH)].tolist()
        kinds = rng.choice([*SHARES, "plain"], BATCH, p=[*SHARES.values(), 1 - sum(SHARES.values())])
        before: tuple[str, str] = ("", "")
        at = 0
        for n, kind in zip(n_pieces.tolist(), kinds.tolist(), strict=True):
            asked, said = " ".join(drawn[at : at + 2]), " ".join(drawn[at + 2 : at + 2 + n])
            at += n + 2
            if kind == "copy" and before[0]:
                asked, said = before
            elif kind == "near" and len(before[1]) > 800:  # a word more at its end: 5-grams alike by 0.95 or more
                asked, said = before[0], before[1] + " Indeed."
            elif kind == "refusal":
                said = "I'm sorry, but I can't help with that request. " + said
            elif kind == "contaminated":
                said += " " + evaluation[number % len(evaluation)]
            elif kind == "broken":
                yield '{"messages": [\n'
                continue
            else:
                before = (asked, said)
            yield json.dumps(shaped(adapter, asked, said) | {"id": f"{key}-{number}"}, ensure_ascii=False) + "\n"
            number += 1
            made += (len(asked) + len(said)) / CHARS_A_TOKEN
            if made >= tokens:
                return


def shaped(adapter: str, asked: str, said: str) -> dict:
    if adapter == "messages":
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
    if adapter == "sharegpt":
        return {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]}
    if adapter == "instruction":
        return {"instruction": asked, "input": "", "output": said}
    return {"question": asked, "answer": said}


def real_pieces() -> tuple[np.ndarray, list[str]]:
    """Sentences and lines to draw from, and evaluation questions."""
    if DATA.is_dir():
        texts = [row["response"] for row in json.loads((DATA / "train/gpteacher_codegen.json").read_text())]
        texts += 2 * [row["response"] for row in json.loads((DATA / "train/gpteacher_roleplay.json").read_text())]
        texts += [json.loads(line)["answer"] for line in (DATA / "train/gsm8k_train.jsonl").open(encoding="utf-8")]
        questions = [json.loads(line)["question"] for line in (DATA / "eval/gsm8k_test.jsonl").open(encoding="utf-8")]
    else:
        words = (ROOT / "data_mixes/samples/common_words.txt").read_text().split()
        drawn = np.random.default_rng(0).choice(words, (20_000, 12))
        texts = [" ".join(row) + "." for row in drawn.tolist()]
        questions = [" ".join(row) for row in np.random.default_rng(1).choice(words, (1000, 20)).tolist()]
    pieces = [piece for text in texts for piece in re.split(r"(?<=[.!?])\s+|\n\n", text) if 20 < len(piece) < 400]
    pieces = [piece for piece in pieces if "```" not in piece]  # half a fence would be dropped
    return np.array(pieces, object), questions


if __name__ == "__main__":
    main()
