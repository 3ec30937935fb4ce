"""MT-Bench (Zheng et al. 2023, arXiv 2306.05685): answers in two turns, each rated from 1 to 10 by a judge model.

No harness in the lock does it. lm-eval 0.4.11 has no such task, and makes its requests before any answer is known,
while a second turn holds the first answer. lighteval's task names one judge in its code and counts a reply that it
cannot read as 0; FastChat, the original, brings a serving stack of its own.

`OUT/answers/<id>.json` and `OUT/ratings/<judge>/<id>.json` carry the key of all that they depend on: an interrupted run
asks only for what is missing, and answers of another model or ratings by another judge are not mixed in.
"""

import importlib.metadata
import json
import re
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from math import sqrt
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import requests
from pydantic import BaseModel, Field
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from hermes3.evaluate.setting import digest, fingerprint
from hermes3.files import UserError, read_json, read_text, sha256, validated, write_text
from hermes3.stats import mean_of

TASK = "mt_bench"
METRICS = ("score", "turn_1", "turn_2")
# The original's sampling temperatures; every other category is answered greedily.
TEMPERATURE = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
REFERENCED = ("math", "reasoning", "coding")  # the original's categories that are judged by a reference
MAX_TOKENS = 1024  # of an answer, as in the original
JUDGE_TOKENS = 2048
JUDGE_TRIES = 3  # for one rating
SEED = 42
TRIES = 5  # of a request
WAIT = 1.0  # seconds: 0, 2, 4 and 8 times as long between the tries, or what the server asks for
BUSY = (408, 429, 500, 502, 503, 504)

VERSION = 1  # of the wording below: another wording gives other ratings
SYSTEM = "You grade the answers of an AI assistant. You are fair, strict, and do not care how long an answer is."
REQUEST = """\
Grade the assistant's answer to the user's {which}. Is it helpful, to the point, correct, thorough and well written, and
does it do all that was asked? {reference}First explain your judgement in a few sentences. Then write one last line,
with a whole number from 1 (useless) to 10 (could not be better) in double square brackets, like this:
Rating: [[5]]"""
WITH_REFERENCE = "Compare it with the reference, which is right, and name every mistake. "
AGAIN = "I could not read a rating. Reply with one line alone: Rating: [[N]], where N is a whole number from 1 to 10."
RATING = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)

Text = Annotated[str, Field(min_length=1)]
Record = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What a run is made of; see `hermes3 mt-bench --help`. `model`: the name it is served by, best its folder."""

    model: str
    questions: Path
    judge_url: str
    judge_model: str
    out: Path
    endpoint: str
    parallel: int = 8
    timeout: float = 600.0
    limit: int | None = None
    max_unrated: int = 0
    model_key: str | None = None
    judge_key: str | None = None


class Question(BaseModel):
    """A line of https://huggingface.co/spaces/lmsys/mt-bench, `data/mt_bench/question.jsonl`: two turns.

    `reference`: what is right at each turn.
    """

    question_id: int
    category: Text
    turns: list[Text] = Field(min_length=2, max_length=2)
    reference: list[str | None] = []

    @property
    def temperature(self) -> float:
        return TEMPERATURE.get(self.category, 0.0)

    @property
    def references(self) -> list[str | None]:
        """What the judge is shown."""
        return self.reference if self.category in REFERENCED else []


class Reply(NamedTuple):
    text: str
    cut: bool  # it reached the limit of tokens


def load_questions(path: Path) -> list[Question]:
    """`UserError` names file, line and key."""
    if not path.is_file():
        raise UserError(f"--questions {path}: no such file; see docs/alignment.md for where to get it")
    questions: dict[int, Question] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: not JSON: {error}") from None
            question = validated(row, Question, f"{path}:{number}")
            if question.question_id in questions:
                raise UserError(f"{path}:{number}: question_id {question.question_id} stands there twice; keep one")
            questions[question.question_id] = question
    if not questions:
        raise UserError(f"{path}: no questions; see docs/alignment.md for where to get them")
    return list(questions.values())


class Endpoint:
    """A chat model behind an OpenAI-compatible endpoint, with time limits and retries.

    `url`: what ends in /v1. `timeout`: seconds for a whole reply. `key` is sent, and stored nowhere.
    """

    def __init__(self, url: str, model: str, key: str | None, timeout: float, parallel: int = 8):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url}: give the address of an endpoint, as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise UserError(f"{parts.hostname}: no secrets in an address, which results name; see --help for the key")
        self.url, self.model, self.timeout = url.rstrip("/"), model, timeout
        self.session = requests.Session()
        retry = Retry(
            TRIES - 1, backoff_factor=WAIT, status_forcelist=BUSY, allowed_methods=None, raise_on_status=False
        )
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=parallel, max_retries=retry))

        def authorise(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if key:
                request.headers["Authorization"] = f"Bearer {key}"
            return request

        self.session.auth = authorise  # also without a key: requests would else send one that it finds in .netrc

    def chat(self, messages: list[dict[str, str]], temperature: float, max_tokens: int, seed: int) -> Reply:
        """The model's next message. `UserError`, naming the endpoint, when it gives none after `TRIES` tries."""
        body: Record = {"model": self.model, "messages": messages, "temperature": temperature}
        body |= {"max_tokens": max_tokens, "seed": seed}
        try:
            answer = self.session.post(f"{self.url}/chat/completions", json=body, timeout=(10, self.timeout))
        except requests.RequestException as error:
            raise UserError(f"{self.url}: no answer in {TRIES} tries: {error}") from None
        if not answer.ok:
            raise UserError(f"{self.url}: {answer.status_code} {answer.reason}: {answer.text[:300]}")
        try:
            choice = answer.json()["choices"][0]
            text = choice["message"]["content"] or ""
        except (requests.JSONDecodeError, KeyError, IndexError, TypeError):
            raise UserError(f"{self.url}: not the form of a chat completion: {answer.text[:300]}") from None
        return Reply(text, choice.get("finish_reason") == "length")


def run(bench: Bench) -> None:
    """Answer, rate, write the results and print them.

    `UserError` for bad input, an endpoint that does not answer, and more than `max_unrated` questions that the judge
    gave no rating for.
    """
    of_file = load_questions(bench.questions)
    questions = {one.question_id: one for one in of_file[: bench.limit]}
    model = Endpoint(bench.endpoint, bench.model, bench.model_key, bench.timeout, bench.parallel)
    judge = Endpoint(bench.judge_url, bench.judge_model, bench.judge_key, bench.timeout, bench.parallel)
    # a folder's files tell the model, wherever it is served; of any other only the address and the name are known
    folder = Path(bench.model)
    known = {"weights": fingerprint(folder)} if (folder / "config.json").is_file() else {"url": model.url}
    setting = {"model": bench.model, **known}
    keys = {n: digest(one.turns, one.temperature, MAX_TOKENS, SEED, setting) for n, one in questions.items()}
    records = _collect(bench.out / "answers", keys, lambda n: _answer(questions[n], model), bench.parallel)
    answers = {n: record["answers"] for n, record in records.items()}
    # by the judge's name, not its address: another node may serve it tomorrow
    keys = {n: digest(one.turns, one.references, answers[n], VERSION, judge.model) for n, one in questions.items()}
    folder = bench.out / "ratings" / bench.judge_model.replace("/", "__")
    ratings = _collect(folder, keys, lambda n: _rate(questions[n], answers[n], judge), bench.parallel)
    unrated = [n for n, record in ratings.items() if None in record["ratings"]]
    if len(unrated) > bench.max_unrated:
        raise UserError(
            f"{bench.judge_model} gave no rating for question {', '.join(map(str, unrated))}; its replies are in "
            f"{folder}. Run again to ask for these alone, or leave them out with --max-unrated {len(unrated)}"
        )
    if (rated := len(questions) - len(unrated)) < 2:
        raise UserError(f"{bench.out}: {rated} of {len(questions)} questions have both ratings; no mean of that")
    path, results = _write(bench, setting, questions, len(of_file), records, ratings)
    print(f"{_summary(results)}\n{path}")


def _answer(question: Question, model: Endpoint) -> Record:
    """Both turns; the second is asked after the first with its answer."""
    messages: list[dict[str, str]] = []
    replies: list[Reply] = []
    for turn in question.turns:
        messages.append({"role": "user", "content": turn})
        replies.append(model.chat(messages, question.temperature, MAX_TOKENS, SEED + question.question_id))
        messages.append({"role": "assistant", "content": replies[-1].text})
    return {"answers": [one.text for one in replies], "cut": [one.cut for one in replies]}


def _rate(question: Question, answers: list[str], judge: Endpoint) -> Record:
    """A rating per turn, or None where the judge gave none in `JUDGE_TRIES` tries; `replies` holds all that it said."""
    ratings, replies = [], []
    for turn in range(2):
        messages, of_turn = judge_prompt(question, answers, turn), []
        while True:
            of_turn.append(judge.chat(messages, 0.0, JUDGE_TOKENS, SEED).text)
            rating = read_rating(of_turn[-1])
            if rating is not None or len(of_turn) == JUDGE_TRIES:
                break
            messages = [*messages, {"role": "assistant", "content": of_turn[-1] or "..."}]
            messages.append({"role": "user", "content": AGAIN})
        ratings.append(rating)
        replies.append(of_turn)
    return {"ratings": ratings, "replies": replies}


def judge_prompt(question: Question, answers: list[str], turn: int) -> list[dict[str, str]]:
    """Messages that ask for a rating of `answers[turn]` alone; the second turn is shown with the first before it."""
    parts = []
    for i in range(turn + 1):
        parts += [f"=== User, message {i + 1} ===\n{question.turns[i]}"]
        parts += [f"=== Assistant, answer {i + 1} ===\n{answers[i]}"]
    references = question.references[: turn + 1]
    parts += [f"=== Reference for message {i + 1} ===\n{text}" for i, text in enumerate(references) if text]
    reference = WITH_REFERENCE if any(references) else ""
    request = REQUEST.format(which="second message" if turn else "message", reference=reference)
    parts.append(f"=== Your task ===\n{request}")
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "\n\n".join(parts)}]


def read_rating(reply: str) -> int | None:
    """The rating, where the last line holds it, the reply holds no other, and it is a whole number from 1 to 10."""
    ratings = RATING.findall(reply)
    lines = reply.strip().splitlines()
    if len(ratings) != 1 or not RATING.search(lines[-1]) or not re.fullmatch(r"10|[1-9]", ratings[0].strip()):
        return None
    return int(ratings[0])


def _stored(path: Path, key: str) -> Record | None:
    """The record in `path` if it has the key, and its ratings if it is of ratings."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return record if record.get("key") == key and None not in record.get("ratings", []) else None


def _collect(folder: Path, keys: dict[int, str], make: Callable[[int], Record], parallel: int) -> dict[int, Record]:
    """question_id -> record, read from `folder` or made, at most `parallel` at once.

    A failure is raised when the requests under way have ended; what was made is kept.
    """
    records = {n: record for n, key in keys.items() if (record := _stored(folder / f"{n}.json", key))}
    todo = [n for n in keys if n not in records]
    print(f"{folder}: {len(records)} of {len(keys)} are there, {len(todo)} to ask for", flush=True)

    def work(n: int) -> Record:
        record = {"key": keys[n], **make(n)}
        write_text(folder / f"{n}.json", json.dumps(record, ensure_ascii=False, indent=1) + "\n")
        return record

    with ThreadPoolExecutor(parallel) as pool:
        records |= zip(todo, pool.map(work, todo), strict=True)  # a failure cancels what has not begun
    return {n: records[n] for n in keys}


def _write(
    bench: Bench,
    setting: Record,
    questions: dict[int, Question],
    of_file: int,
    answers: dict[int, Record],
    ratings: dict[int, Record],
) -> tuple[Path, Record]:
    """Write results in the form of lm-eval 0.4.11 below `bench.out`, so that whatever reads its results reads these.

    A question's score is the mean of its two ratings. One that lacks a rating is no part of any mean; it is listed.
    `setting`: what the answers depend on; `of_file`: questions in the file. Where the newest results hold all this
    already, nothing is written.
    """
    judge = {"model": bench.judge_model, "url": bench.judge_url}
    model = str(Path(bench.model)) if Path(bench.model).is_dir() else bench.model
    rated = [n for n in questions if None not in ratings[n]["ratings"]]
    samples = [_sample(i, questions[n], answers[n], ratings[n]) for i, n in enumerate(questions) if n in rated]
    key = digest([answers[n]["key"] for n in questions], [ratings[n] for n in questions])
    for path in sorted(bench.out.rglob("results_*.json"))[-1:]:
        before = read_json(path)
        if before.get(TASK, {}).get("key") == key:
            return path, before
    scores: Record = {"alias": TASK}
    for metric in METRICS:
        values = [sample[metric] for sample in samples]
        scores |= {f"{metric},none": statistics.mean(values)}
        scores |= {f"{metric}_stderr,none": statistics.stdev(values) / sqrt(len(values))}
    by_category: dict[str, list[float]] = {}
    for sample in samples:
        by_category.setdefault(sample["doc"]["category"], []).append(sample["score"])
    low, high = mean_of([sample["score"] for sample in samples])
    now = datetime.now()
    template = Path(model) / "chat_template.jinja"
    version = f"{VERSION}, judged by {judge['model']}"  # of two judges, scores are not compared
    results = {
        "results": {TASK: scores},
        "versions": {TASK: version},
        "n-shot": {TASK: 0},
        "higher_is_better": {TASK: dict.fromkeys(METRICS, True)},
        "n-samples": {TASK: {"original": of_file, "effective": len(rated)}},
        "config": {"model": "endpoint", "model_args": {"pretrained": model}, "limit": bench.limit},
        "lm_eval_version": importlib.metadata.version("lm_eval"),  # whose form this is
        "chat_template_sha": sha256(template) if template.is_file() else None,
        "system_instruction_sha": None,
        "model_name": model,
        TASK: {
            "key": key,
            "judge": judge,
            "answered_by": setting | {"endpoint": bench.endpoint},
            "interval": {"level": 0.95, "method": "Student's t over questions", "low": low, "high": high},
            "categories": {category: statistics.mean(values) for category, values in by_category.items()},
            "unrated": [n for n in questions if n not in rated],
            "cut_answers": sum(sum(answers[n]["cut"]) for n in questions),
        },
    }
    date = now.isoformat().replace(":", "-")
    folder = bench.out / model.strip("/").replace("/", "__")
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    write_text(folder / f"samples_{TASK}_{date}.jsonl", "".join(lines))
    path = folder / f"results_{date}.json"
    write_text(path, json.dumps(results, ensure_ascii=False, indent=2) + "\n")
    return path, results


def _sample(number: int, question: Question, answer: Record, rating: Record) -> Record:
    first, second = rating["ratings"]
    doc = question.model_dump()
    return {
        "doc_id": number,
        "doc": doc,
        "target": "",
        "arguments": {"gen_args_0": {"arg_0": question.turns[0]}, "gen_args_1": {"arg_0": question.turns[1]}},
        "resps": [answer["answers"]],
        "filtered_resps": answer["answers"],
        "filter": "none",
        "metrics": list(METRICS),
        "doc_hash": digest(doc),
        "prompt_hash": digest(question.turns),
        "target_hash": digest(""),
        "score": (first + second) / 2,
        "turn_1": first,
        "turn_2": second,
        "judge_replies": rating["replies"],
    }


def _summary(results: Record) -> str:
    """Score, interval, turns, categories, and what is no part of them."""
    scores, more = results["results"][TASK], results[TASK]
    low, high = more["interval"]["low"], more["interval"]["high"]
    n, judge = results["n-samples"][TASK]["effective"], more["judge"]["model"]
    lines = [
        f"MT-Bench {scores['score,none']:.2f} ({low:.2f} to {high:.2f}), {n} questions, judge {judge}",
        f"turn 1 {scores['turn_1,none']:.2f}, turn 2 {scores['turn_2,none']:.2f}",
        ", ".join(f"{name} {mean:.2f}" for name, mean in more["categories"].items()),
    ]
    if more["unrated"]:
        lines.append(f"left out, as the judge gave no rating: question {', '.join(map(str, more['unrated']))}")
    if more["cut_answers"]:
        lines.append(f"{more['cut_answers']} answers were cut at the limit of tokens")
    return "\n".join(lines)
