"""MT-Bench (Zheng et al. 2023, arXiv 2306.05685): answers in two turns, each rated from 1 to 10 by a judge model.

No harness in the lock does it: lm-eval makes its requests before any answer is known, while a second turn holds the
first answer; lighteval names one judge in its code; FastChat, the original, brings a serving stack of its own.
`OUT/answers/<id>.json` and `OUT/ratings/<judge>/<id>.json` carry the key of all that they depend on: an interrupted run
asks only for what is missing, and answers of another model or ratings by another judge are not mixed in.
"""

import importlib.metadata
import json
import re
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from math import sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any
from urllib.parse import urlsplit

import requests
from pydantic import BaseModel, Field
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from hermes3.evaluate.setting import digest, fingerprint
from hermes3.files import UserError, read_yaml, sha256, validated, write_text
from hermes3.stats import mean_of

TASK = "mt_bench"
METRICS = ("score", "turn_1", "turn_2")
SETUP = SimpleNamespace(**read_yaml(Path(__file__).with_suffix(".yml")))
TRIES = 5  # of a request
WAIT = 1.0  # seconds: 0, 2, 4 and 8 times as long between the tries, or what the server asks for
BUSY = (408, 429, 500, 502, 503, 504)

RATING = re.compile(r"\[\[\s*(\d+(?:[.,]\d+)?)\s*(?:/\s*10)?\s*\]\]")
THINKING = re.compile(r"<(think|thinking|reasoning|scratchpad)>.*?(</\1>|$)", re.DOTALL | re.IGNORECASE)

Text = Annotated[str, Field(min_length=1)]
Record = dict[str, Any]


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
        return SETUP.temperature.get(self.category, 0.0)

    @property
    def references(self) -> list[str | None]:
        """What the judge is shown."""
        return self.reference if self.category in SETUP.referenced else []


class Reference(BaseModel):
    """A line of MT-Bench's `reference_answer/MODEL.jsonl`: answers of a strong model, taken for right."""

    question_id: int
    choices: list[dict[str, Any]] = Field(min_length=1)


def load_questions(path: Path, references: Path | None = None) -> list[Question]:
    """The questions, with the references of a second file. `UserError` names file, line and key."""
    questions = _read_lines(path, Question, "--questions")
    for number, line in (_read_lines(references, Reference, "--references") if references else {}).items():
        if number in questions:
            questions[number].reference = line.choices[0].get("turns", [])
    return list(questions.values())


def _read_lines(path: Path, model: type[BaseModel], option: str) -> dict[int, Any]:
    if not path.is_file():
        raise UserError(f"{option} {path}: no such file; see docs/alignment.md for where to get it")
    lines: dict[int, Any] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = validated(json.loads(line), model, f"{path}:{number}")
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not JSON: {error}") from None
        if row.question_id in lines:
            raise UserError(f"{path}:{number}: question_id {row.question_id} stands there twice; keep one")
        lines[row.question_id] = row
    return lines


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
        self.tokens = [0, 0]  # of prompts and of replies, as the server counts them
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.session = requests.Session()
        self.session.auth = lambda request: request  # requests would else send a key that it finds in .netrc
        retry = Retry(
            TRIES - 1, backoff_factor=WAIT, status_forcelist=BUSY, allowed_methods=None, raise_on_status=False
        )
        self.session.mount(f"{parts.scheme}://", HTTPAdapter(pool_maxsize=parallel, max_retries=retry))

    def chat(self, messages: list[dict[str, str]], temperature: float, max_tokens: int, seed: int) -> tuple[str, bool]:
        """The model's next message, and whether the limit of tokens cut it.

        `UserError`, naming the endpoint, when it gives none after `TRIES` tries.
        """
        body: Record = {"model": self.model, "messages": messages, "temperature": temperature}
        body |= {"max_tokens": max_tokens, "seed": seed}
        try:
            answer = self.session.post(
                f"{self.url}/chat/completions", json=body, headers=self.headers, timeout=(10, self.timeout)
            )
        except requests.RequestException as error:
            raise UserError(f"{self.url}: no answer in {TRIES} tries: {error}") from None
        if not answer.ok:
            raise UserError(f"{self.url}: {answer.status_code} {answer.reason}: {answer.text[:300]}")
        try:
            reply = answer.json()
            choice, usage = reply["choices"][0], reply.get("usage") or {}
            for place, count in enumerate(("prompt_tokens", "completion_tokens")):
                self.tokens[place] += usage.get(count) or 0
            return choice["message"]["content"] or "", choice.get("finish_reason") == "length"
        except (requests.JSONDecodeError, KeyError, IndexError, TypeError):
            raise UserError(f"{self.url}: not the form of a chat completion: {answer.text[:300]}") from None


def run(
    questions_file: Path,
    model: Endpoint,
    judge: Endpoint,
    out: Path,
    parallel: int = 8,
    limit: int | None = None,
    max_unrated: int = 0,
    references: Path | None = None,
    judge_price: tuple[float, float] = (0, 0),
) -> None:
    """Answer, rate, write the results and print them. `limit`: only the first questions; `parallel`: requests at once.

    `judge_price`: dollars per million tokens of prompts and of replies.

    `UserError` for bad input, an endpoint that does not answer, and more than `max_unrated` questions that the judge
    gave no rating for.
    """
    whole = load_questions(questions_file, references)
    questions = {one.question_id: one for one in whole[:limit]}
    lacking = [n for n, one in questions.items() if one.category in SETUP.referenced and not any(one.reference)]
    if lacking:
        print(f"judged without a reference, which --references could give: question {', '.join(map(str, lacking))}")
    # a folder's files tell the model, wherever it is served; any other is told by its name alone
    folder = Path(model.model)
    setting = {"model": model.model} | ({"weights": fingerprint(folder)} if (folder / "config.json").is_file() else {})
    keys = {
        n: digest(one.turns, one.temperature, SETUP.answer_tokens, SETUP.seed, setting) for n, one in questions.items()
    }
    answers = _collect(out / "answers", keys, lambda n: _answer(questions[n], model), parallel)
    if moved := sorted({record["url"] for record in answers.values()} - {model.url} if len(setting) == 1 else ()):
        print(f"answers from {', '.join(moved)} are kept: the model is taken to be the same by its name, {model.model}")
    texts = {n: record["answers"] for n, record in answers.items()}
    # by the judge's name, not its address: another node may serve it tomorrow
    asked = (SETUP.version, judge.model)
    keys = {n: digest(one.turns, one.references, texts[n], *asked) for n, one in questions.items()}
    folder = out / "ratings" / judge.model.replace("/", "__")
    ratings = _collect(folder, keys, lambda n: _rate(questions[n], texts[n], judge), parallel)
    unrated = [n for n, record in ratings.items() if None in record["ratings"]]
    if len(unrated) > max_unrated:
        raise UserError(
            f"{judge.model} gave no rating for question {', '.join(map(str, unrated))}; its replies are in {folder}. "
            f"Run again to ask for these alone, or leave them out with --max-unrated {len(unrated)}"
        )
    samples = [_sample(i, questions[n], answers[n], ratings[n]) for i, n in enumerate(questions) if n not in unrated]
    if len(samples) < 2:
        raise UserError(f"{out}: {len(samples)} of {len(questions)} questions have both ratings; no mean of that")
    judged = {"key": digest([answers[n]["key"] for n in questions], [ratings[n] for n in questions])}
    judged |= {"judge": {"model": judge.model, "url": judge.url}, "unrated": unrated}
    judged |= {"answered_by": setting | {"endpoint": model.url}}
    judged |= {"without_reference": lacking, "tokens": {"answers": model.tokens, "ratings": judge.tokens}}
    judged["dollars"] = sum(price * count / 1e6 for price, count in zip(judge_price, judge.tokens, strict=True))
    judged |= {"cut_answers": sum(sum(record["cut"]) for record in answers.values())}
    print(_write(out, model.model, judged, samples, len(whole), limit))


def _answer(question: Question, model: Endpoint) -> Record:
    """Both turns; the second is asked after the first with its answer."""
    messages: list[dict[str, str]] = []
    record: Record = {"url": model.url, "answers": [], "cut": []}
    for turn in question.turns:
        messages.append({"role": "user", "content": turn})
        seed = SETUP.seed + question.question_id
        text, cut = model.chat(messages, question.temperature, SETUP.answer_tokens, seed)
        messages.append({"role": "assistant", "content": text})
        record["answers"].append(text)
        record["cut"].append(cut)
    return record


def _rate(question: Question, answers: list[str], judge: Endpoint) -> Record:
    """A rating per turn, or None where the judge gave none in `judge_tries`; `replies` holds all that it said."""
    record: Record = {"ratings": [None, None], "replies": [[], []]}
    for turn in range(2):
        messages, replies = judge_prompt(question, answers, turn), record["replies"][turn]
        while record["ratings"][turn] is None and len(replies) < SETUP.judge_tries:
            replies.append(judge.chat(messages, 0.0, SETUP.judge_tokens, SETUP.seed)[0])
            record["ratings"][turn] = read_rating(replies[-1])
            messages = [*messages, {"role": "assistant", "content": replies[-1] or "..."}]
            messages.append({"role": "user", "content": SETUP.again})
    return record


def judge_prompt(question: Question, answers: list[str], turn: int) -> list[dict[str, str]]:
    """Messages that ask for a rating of `answers[turn]` alone; the second turn is shown with the first before it."""
    parts = []
    for i in range(turn + 1):
        parts += [f"=== User, message {i + 1} ===\n{question.turns[i]}"]
        parts += [f"=== Assistant, answer {i + 1} ===\n{answers[i]}"]
    references = question.references[: turn + 1]
    parts += [f"=== Reference for message {i + 1} ===\n{text}" for i, text in enumerate(references) if text]
    reference = SETUP.with_reference if any(references) else ""
    request = SETUP.request.format(which="second message" if turn else "message", reference=reference)
    parts.append(f"=== Your task ===\n{request}")
    return [{"role": "system", "content": SETUP.system}, {"role": "user", "content": "\n\n".join(parts)}]


def read_rating(reply: str) -> float | None:
    """The rating from 1 to 10, on whatever line; None where there is none, or two differ. Thinking is no reply."""
    text = THINKING.sub("", reply).rpartition("</think>")[2]
    numbers = {float(number.replace(",", ".")) for number in RATING.findall(text)}
    rating = numbers.pop() if len(numbers) == 1 else 0
    return rating if 1 <= rating <= 10 else None


def _collect(folder: Path, keys: dict[int, str], make: Callable[[int], Record], parallel: int) -> dict[int, Record]:
    """question_id -> record, read from `folder` where it has the key and every rating, or made, `parallel` at once.

    A failure is raised when the requests under way have ended; what was made is kept.
    """
    records: dict[int, Record] = {}
    for n, key in keys.items():
        try:
            record = json.loads((folder / f"{n}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            continue
        if record.get("key") == key and None not in record.get("ratings", []):
            records[n] = record
    todo = [n for n in keys if n not in records]
    print(f"{folder}: {len(records)} of {len(keys)} are there, {len(todo)} to ask for", flush=True)

    def work(n: int) -> Record:
        record = {"key": keys[n], **make(n)}
        write_text(folder / f"{n}.json", json.dumps(record, ensure_ascii=False, indent=1) + "\n")
        return record

    with ThreadPoolExecutor(parallel) as pool:
        records |= zip(todo, pool.map(work, todo), strict=True)  # a failure cancels what has not begun
    return {n: records[n] for n in keys}


def _sample(number: int, question: Question, answer: Record, rating: Record) -> Record:
    """A line of lm-eval's samples; the question's score is the mean of its two ratings."""
    first, second = rating["ratings"]
    record = {"doc_id": number, "doc": question.model_dump(), "target": "", "resps": [answer["answers"]]}
    record |= {"arguments": {f"gen_args_{i}": {"arg_0": turn} for i, turn in enumerate(question.turns)}}
    record |= {"filtered_resps": answer["answers"], "filter": "none", "metrics": list(METRICS)}
    record |= {"doc_hash": digest(question.model_dump()), "prompt_hash": digest(question.turns)}
    record |= {"score": (first + second) / 2, "turn_1": first, "turn_2": second}
    return record | {"judge_replies": rating["replies"]}


def _write(out: Path, model: str, judged: Record, samples: list[Record], of_file: int, limit: int | None) -> str:
    """Write results in the form of lm-eval 0.4.11 below `out`, so that whatever reads its results reads these.

    Where the newest results have the key of `judged` already, nothing is written. `of_file`: questions in the file.
    Returns the scores in words, with their interval and what is no part of them.
    """
    scores: Record = {"alias": TASK}
    for metric in METRICS:
        values = [sample[metric] for sample in samples]
        scores |= {f"{metric},none": statistics.mean(values)}
        scores |= {f"{metric}_stderr,none": statistics.stdev(values) / sqrt(len(values))}
    categories: dict[str, list[float]] = {}
    for sample in samples:
        categories.setdefault(sample["doc"]["category"], []).append(sample["score"])
    judged |= {"categories": {name: statistics.mean(values) for name, values in categories.items()}}
    judge, template = judged["judge"]["model"], Path(model) / "chat_template.jinja"
    results = {
        "results": {TASK: scores},
        "versions": {TASK: f"{SETUP.version}, judged by {judge}"},  # of two judges, scores are not compared
        "n-shot": {TASK: 0},
        "higher_is_better": {TASK: dict.fromkeys(METRICS, True)},
        "n-samples": {TASK: {"original": of_file, "effective": len(samples)}},
        "config": {"model": "endpoint", "model_args": {"pretrained": model}, "limit": limit},
        "lm_eval_version": importlib.metadata.version("lm_eval"),  # whose form this is
        "chat_template_sha": sha256(template) if template.is_file() else None,
        "system_instruction_sha": None,
        "model_name": model,
        TASK: judged,
    }
    path = max(out.rglob("results_*.json"), default=None)
    if path is None or json.loads(path.read_text(encoding="utf-8")).get(TASK, {}).get("key") != judged["key"]:
        date = datetime.now().isoformat().replace(":", "-")
        path = out / model.strip("/").replace("/", "__") / f"results_{date}.json"
        lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
        write_text(path.with_name(f"samples_{TASK}_{date}.jsonl"), "".join(lines))
        write_text(path, json.dumps(results, ensure_ascii=False, indent=2) + "\n")
    low, high = mean_of([sample["score"] for sample in samples])
    lines = [
        f"MT-Bench {scores['score,none']:.2f} ({low:.2f} to {high:.2f}), {len(samples)} questions, judge {judge}",
        f"turn 1 {scores['turn_1,none']:.2f}, turn 2 {scores['turn_2,none']:.2f}",
        ", ".join(f"{name} {mean:.2f}" for name, mean in judged["categories"].items()),
    ]
    for what, (asked, replied) in judged["tokens"].items():
        lines += [f"tokens of this run's {what}: {asked:,} in prompts, {replied:,} in replies"] if asked else []
    if judged["dollars"]:
        lines.append(f"cost of this run's ratings: ${judged['dollars']:.2f}")
    if judged["unrated"]:
        lines.append(f"left out, as the judge gave no rating: question {', '.join(map(str, judged['unrated']))}")
    if judged["cut_answers"]:
        lines.append(f"{judged['cut_answers']} answers were cut at the limit of tokens")
    return "\n".join([*lines, str(path)])
