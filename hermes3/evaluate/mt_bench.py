"""MT-Bench (Zheng et al. 2023, arXiv 2306.05685): answers in two turns, each rated from 1 to 10 by a judge model.

No harness in the lock does it: lm-eval makes its requests before any answer is known, lighteval names one judge in its
code, and FastChat, the original, brings a serving stack of its own.
"""

import importlib.metadata
import json
import re
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Annotated, Any
from urllib.parse import urlsplit

import openai
from pydantic import BaseModel, Field

from hermes3.evaluate.run import digest, fingerprint
from hermes3.files import UserError, read_text, read_yaml, sha256, validated, write_text
from hermes3.results.lm_eval import MT_BENCH as TASK
from hermes3.stats import estimate

METRICS = ("score", "turn_1", "turn_2")
SETUP = SimpleNamespace(**read_yaml(Path(__file__).with_suffix(".yml")))
Text = Annotated[str, Field(min_length=1)]
Record = dict[str, Any]


class Question(BaseModel):
    """A line of https://huggingface.co/spaces/lmsys/mt-bench, `data/mt_bench/question.jsonl`."""

    question_id: int
    category: Text
    turns: list[Text] = Field(min_length=2, max_length=2)
    reference: list[str | None] = []  # what is right at each turn; [] where the judge is shown none


class Reference(BaseModel):
    """A line of MT-Bench's `reference_answer/MODEL.jsonl`: answers of a strong model, taken for right."""

    question_id: int
    choices: list[dict[str, Any]] = Field(min_length=1)


def load_questions(path: Path, references: Path | None = None) -> list[Question]:
    """The questions, with the references of a second file. `UserError` names file, line and key."""
    questions = _read_lines(path, Question)
    others = _read_lines(references, Reference) if references else {}
    for number, question in questions.items():
        if question.category not in SETUP.referenced:
            question.reference = []
        elif number in others:
            question.reference = others[number].choices[0].get("turns", [])
    return list(questions.values())


def _read_lines(path: Path, model: type[BaseModel]) -> dict[int, Any]:
    lines: dict[int, Any] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            row = validated(json.loads(line), model, f"{path}:{number}")
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not JSON: {error}") from None
        if lines.setdefault(row.question_id, row) is not row:
            raise UserError(f"{path}:{number}: question_id {row.question_id} stands there twice; keep one")
    return lines


class Endpoint:
    """A chat model behind an OpenAI-compatible endpoint, whose `url` ends in /v1. `key` is sent, and stored nowhere.
    `timeout`: seconds. `parallel`: requests at once. `price`: dollars per million tokens of prompts, and of replies."""

    def __init__(self, url: str, model: str, key: str | None, timeout: float, parallel: int = 8, price=(0.0, 0.0)):
        if not re.fullmatch(r"https?://[^/@?]+(/[^@?]*)?", url):
            host = urlsplit(url).hostname or "endpoint"
            raise UserError(f"{host}: give http://HOST:PORT/v1, with no secrets in the address; see --help for the key")
        self.url, self.model, self.parallel, self.price = url.rstrip("/"), model, parallel, price
        self.tokens = [0, 0]  # of prompts and of replies, as the server counts them
        patience = {"timeout": openai.Timeout(timeout, connect=10), "max_retries": SETUP.request_tries - 1}
        self.client = openai.OpenAI(api_key=key or "none", base_url=self.url, **patience)

    def chat(self, messages: list[dict[str, str]], temperature: float, max_tokens: int, seed: int) -> tuple[str, bool]:
        """The model's next message, and whether the limit of tokens cut it. `UserError` when it gives none."""
        settings = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        reply: Any = "no JSON"
        try:
            reply = self.client.chat.completions.create(model=self.model, messages=messages, **settings)
            choice = reply.choices[0]
            if reply.usage:
                self.tokens[0] += reply.usage.prompt_tokens or 0
                self.tokens[1] += reply.usage.completion_tokens or 0
            return choice.message.content or "", choice.finish_reason == "length"
        except openai.APIStatusError as error:
            reason = f"{error.status_code} {error.response.reason_phrase}: {error.response.text[:300]}"
        except openai.APIConnectionError as error:
            reason = f"no answer in {SETUP.request_tries} tries: {error.__cause__ or error}"
        except (AttributeError, IndexError, TypeError, ValueError):
            reason = f"not the form of a chat completion: {str(reply)[:300]}"
        raise UserError(f"{self.url}: {reason}")


def run(
    questions: list[Question], model: Endpoint, judge: Endpoint, out: Path, limit: int | None, max_unrated: int
) -> None:
    """Answer and rate the first `limit` questions; write the results and print them. Run again, it asks for the rest.
    `UserError` if an endpoint does not answer, or more than `max_unrated` questions are left without a rating."""
    # a folder's files tell the model, wherever it is served; any other is told by its name alone
    folder, setting = Path(model.model), {"model": model.model}
    if (folder / "config.json").is_file():
        setting["weights"] = fingerprint(folder)
    ratings = out / "ratings" / judge.model.replace("/", "__")

    def ask(number: int, one: Question) -> Record:
        """A line of lm-eval's samples; the question's score is the mean of its two ratings."""
        file, warmth, doc = f"{one.question_id}.json", SETUP.temperature.get(one.category, 0.0), one.model_dump()
        key = digest(one.turns, warmth, SETUP.answer_tokens, SETUP.seed, setting)
        answer = _stored(out / "answers" / file, key, lambda: _answer(one, model, warmth))
        # by the judge's name, not its address: another node may serve it tomorrow
        key = digest(one.turns, one.reference, answer["answers"], SETUP.version, judge.model)
        rating = _stored(ratings / file, key, lambda: _rate(one, answer["answers"], judge))
        first, second = rating["ratings"]
        print(f"question {one.question_id}: rated {first} and {second}", flush=True)
        sample = {"doc_id": number, "doc": doc, "doc_hash": digest(doc), "prompt_hash": digest(one.turns), "target": ""}
        sample |= {"arguments": {f"gen_args_{i}": {"arg_0": turn} for i, turn in enumerate(one.turns)}}
        sample |= {"resps": [answer["answers"]], "filter": "none", "judge_replies": rating["replies"]}
        sample |= {"url": answer["url"], "cut": sum(answer["cut"]), "turn_1": first, "turn_2": second}
        return sample | {"score": (first + second) / 2 if first and second else None, "metrics": METRICS}

    with ThreadPoolExecutor(model.parallel) as pool:
        asked = questions[:limit]
        samples = list(pool.map(ask, range(len(asked)), asked))  # a failure cancels what has not begun
    moved = sorted({sample["url"] for sample in samples} - {model.url})
    if moved and len(setting) == 1:
        print(f"answers from {', '.join(moved)} are kept: the model is taken to be the same by its name, {model.model}")
    unrated = [sample["doc"]["question_id"] for sample in samples if not sample["score"]]
    if len(unrated) > max_unrated:
        wrong = f"gave no rating for question {', '.join(map(str, unrated))}; its replies are in {ratings}"
        remedy = f"Run again to ask for these alone, or leave them out with --max-unrated {len(unrated)}"
        raise UserError(f"{judge.model} {wrong}. {remedy}")
    judged = {"judge": {"model": judge.model, "url": judge.url}, "answered_by": setting | {"endpoint": model.url}}
    judged |= {"unrated": unrated, "tokens": {"answers": model.tokens, "ratings": judge.tokens}}
    referenced = [one for one in asked if one.category in SETUP.referenced]
    judged["without_reference"] = [one.question_id for one in referenced if not any(one.reference)]
    judged["cut_answers"] = sum(sample["cut"] for sample in samples)
    judged["dollars"] = sum(price * count / 1e6 for price, count in zip(judge.price, judge.tokens, strict=True))
    _write(out, model.model, judged, [sample for sample in samples if sample["score"]], len(questions))


def _stored(path: Path, key: str, make: Callable[[], Record]) -> Record:
    """The record in `path` where it has the key and every rating; else a new one, which is written there."""
    with suppress(FileNotFoundError, json.JSONDecodeError):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("key") == key and None not in record.get("ratings", []):
            return record
    record = {"key": key, **make()}
    write_text(path, json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    return record


def _answer(question: Question, model: Endpoint, temperature: float) -> Record:
    messages: list[dict[str, str]] = []
    record: Record = {"url": model.url, "answers": [], "cut": []}
    for turn in question.turns:
        messages.append({"role": "user", "content": turn})
        text, cut = model.chat(messages, temperature, SETUP.answer_tokens, SETUP.seed + question.question_id)
        messages.append({"role": "assistant", "content": text})
        record["answers"].append(text)
        record["cut"].append(cut)
    return record


def _rate(question: Question, answers: list[str], judge: Endpoint) -> Record:
    record: Record = {"ratings": [None, None], "replies": [[], []]}
    for turn, replies in enumerate(record["replies"]):
        messages = judge_prompt(question, answers, turn)
        while record["ratings"][turn] is None and len(replies) < SETUP.judge_tries:
            replies.append(judge.chat(messages, 0.0, SETUP.judge_tokens, SETUP.seed)[0])
            record["ratings"][turn] = read_rating(replies[-1])
            messages.append({"role": "assistant", "content": replies[-1] or "..."})
            messages.append({"role": "user", "content": SETUP.again})
    return record


def judge_prompt(question: Question, answers: list[str], turn: int) -> list[dict[str, str]]:
    """Messages that ask for a rating of `answers[turn]` alone; the second turn is shown with the first before it."""
    parts = []
    for i in range(turn + 1):
        parts += [f"=== User, message {i + 1} ===\n{question.turns[i]}"]
        parts += [f"=== Assistant, answer {i + 1} ===\n{answers[i]}"]
    references = question.reference[: turn + 1]
    parts += [f"=== Reference for message {i + 1} ===\n{text}" for i, text in enumerate(references) if text]
    reference = SETUP.with_reference if any(references) else ""
    request = SETUP.request.format(which="second message" if turn else "message", reference=reference)
    parts.append(f"=== Your task ===\n{request}")
    return [{"role": "system", "content": SETUP.system}, {"role": "user", "content": "\n\n".join(parts)}]


def read_rating(reply: str) -> float | None:
    """The rating from 1 to 10, on whatever line; None where there is none, or two differ. Thinking is no reply."""
    text = re.sub(SETUP.thinking, "", reply).rpartition("</think>")[2]
    numbers = {float(number.replace(",", ".")) for number in re.findall(SETUP.rating, text)}
    rating = numbers.pop() if len(numbers) == 1 else 0
    return rating if 1 <= rating <= 10 else None


def _write(out: Path, model: str, judged: Record, samples: list[Record], of_file: int) -> None:
    """Write results in the form of lm-eval 0.4.11, so that whatever reads its results reads these; print the scores."""
    if len(samples) < 2:
        raise UserError(f"{out}: {len(samples)} questions have both ratings; no mean of that")
    scores = {metric: mean(sample[metric] for sample in samples) for metric in METRICS}
    categories = defaultdict(list)
    for sample in samples:
        categories[sample["doc"]["category"]].append(sample["score"])
    means = {name: mean(values) for name, values in categories.items()}
    judge, template = judged["judge"]["model"], Path(model) / "chat_template.jinja"
    results = {"results": {TASK: {f"{metric},none": value for metric, value in scores.items()}}, "n-shot": {TASK: 0}}
    results["versions"] = {TASK: f"{SETUP.version}, judged by {judge}"}  # of two judges, scores are not compared
    results |= {"n-samples": {TASK: {"original": of_file, "effective": len(samples)}}, "model_name": model}
    results |= {"config": {"model": "endpoint", "model_args": {"pretrained": model}}}
    results["lm_eval_version"] = importlib.metadata.version("lm_eval")  # whose form this is
    results["chat_template_sha"] = sha256(template) if template.is_file() else None
    results[TASK] = judged | {"categories": means}
    date = datetime.now().isoformat().replace(":", "-")
    path = out / model.strip("/").replace("/", "__") / f"results_{date}.json"
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    write_text(path.with_name(f"samples_{TASK}_{date}.jsonl"), "".join(lines))
    write_text(path, json.dumps(results, ensure_ascii=False, indent=2) + "\n")
    low, high = estimate([[sample["score"] for sample in samples]], [range(len(samples))], [1], True).interval()
    print(f"MT-Bench {scores['score']:.2f} ({low:.2f} to {high:.2f}), {len(samples)} questions, judge {judge}")
    print(*(f"{name} {value:.2f}" for name, value in (scores | means).items() if name != "score"), sep=", ")
    for what in ("tokens", "dollars", "unrated", "without_reference", "cut_answers"):
        if judged[what]:
            print(f"{what.replace('_', ' ')}: {judged[what]}")
    print(path)
