"""A run of MT-Bench: two answers to a question, a rating for each.

`OUT/answers/<id>.json` and `OUT/ratings/<judge>/<id>.json` carry the key of all that they depend on. A run that was
interrupted asks only for what is missing, and answers of another model or ratings by another judge are not mixed in.
"""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from hermes3.files import write_text
from hermes3.mt_bench import judge
from hermes3.mt_bench.endpoint import Endpoint, Reply
from hermes3.mt_bench.questions import Question, load

MAX_TOKENS = 1024  # of an answer, as in the original
JUDGE_TOKENS = 2048
ASKED = 3  # times that the judge is asked for one rating
SEED = 42
Record = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What a run is made of; see `hermes3 mt-bench --help`. Without `endpoint`, `model` is a folder."""

    model: str
    questions: Path
    judge_url: str
    judge_model: str
    out: Path
    endpoint: str | None = None
    parallel: int = 8
    timeout: float = 600.0
    limit: int | None = None
    max_unrated: int = 0
    model_key: str | None = None
    judge_key: str | None = None


class Chat(Protocol):
    def chat(self, messages: list[dict[str, str]], temperature: float, max_tokens: int, seed: int) -> Reply: ...


def key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def run(bench: Bench, dry_run: bool = False) -> None:
    """Answer, rate, write the results and print them; `dry_run` asks nothing, and says what it would ask.

    `ValueError` for bad input, an endpoint that does not answer, and more than `max_unrated` questions that the judge
    gave no rating for.
    """
    from hermes3.mt_bench.results import summary, write

    questions = load(bench.questions)
    asked = {one.question_id: one for one in questions[: bench.limit]}
    answerer, setting = _answerer(bench)
    grader = Endpoint(bench.judge_url, bench.judge_model, bench.judge_key, bench.timeout, bench.parallel)
    keys = {n: key(one.turns, one.temperature, MAX_TOKENS, SEED, setting) for n, one in asked.items()}
    if dry_run:
        there = sum(stored(bench.out / f"answers/{n}.json", wanted) is not None for n, wanted in keys.items())
        print(f"{len(asked)} questions of two turns, {there} of them answered in {bench.out}")
        print(f"answers: {bench.model} {bench.endpoint or 'here'}; ratings: {bench.judge_model} {bench.judge_url}")
        return
    parallel = bench.parallel if bench.endpoint else 1
    answers = collect(bench.out / "answers", keys, lambda n: answer(asked[n], answerer(), keys[n]), parallel)
    said = {n: record["answers"] for n, record in answers.items()}
    # by the judge's name, not its address: another node may serve it tomorrow
    keys = {n: key(one.turns, one.references, said[n], judge.VERSION, grader.model) for n, one in asked.items()}
    folder = bench.out / "ratings" / bench.judge_model.replace("/", "__")
    ratings = collect(folder, keys, lambda n: rate(asked[n], said[n], grader, keys[n]), bench.parallel, again=_unrated)
    if (left := [str(n) for n, record in ratings.items() if _unrated(record)]) and len(left) > bench.max_unrated:
        raise ValueError(
            f"{bench.judge_model} gave no rating for question {', '.join(left)}; its replies are in {folder}. Run "
            f"again to ask for these alone, or leave them out with --max-unrated {len(left)}"
        )
    path, results = write(bench, setting, list(asked.values()), len(questions), answers, ratings)
    print(f"{summary(results)}\n{path}")


def _answerer(bench: Bench) -> tuple[Callable[[], Chat], Record]:
    """What answers, made when it is first needed, and what its answers depend on."""
    from hermes3.evaluate.setting import fingerprint
    from hermes3.model_folder import check_model

    folder = Path(bench.model)
    if bench.endpoint is None:
        from hermes3.mt_bench.local import LocalModel

        check_model(folder)
        return cache(lambda: LocalModel(folder)), {"backend": "hf", "weights": fingerprint(folder)}
    endpoint = Endpoint(bench.endpoint, bench.model, bench.model_key, bench.timeout, bench.parallel)
    known = {"weights": fingerprint(folder)} if (folder / "config.json").is_file() else {"url": endpoint.url}
    return lambda: endpoint, {"backend": "endpoint", "model": bench.model, **known}


def _unrated(record: Record) -> bool:
    return None in record["ratings"]


def stored(path: Path, wanted: str) -> Record | None:
    """The record in `path` if it has the key `wanted`."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return record if record.get("key") == wanted else None


def answer(question: Question, model: Chat, wanted: str) -> Record:
    """Both turns; the second is asked after the first with its answer."""
    messages: list[dict[str, str]] = []
    replies: list[Reply] = []
    for turn in question.turns:
        messages.append({"role": "user", "content": turn})
        replies.append(model.chat(messages, question.temperature, MAX_TOKENS, SEED + question.question_id))
        messages.append({"role": "assistant", "content": replies[-1].text})
    return {"key": wanted, "answers": [one.text for one in replies], "cut": [one.cut for one in replies]}


def rate(question: Question, answers: list[str], model: Chat, wanted: str) -> Record:
    """A rating a turn, or None where the judge gave none in `ASKED` tries; `replies` holds all that it said."""
    ratings, said = [], []
    for turn in range(2):
        messages, replies = judge.prompt(question, answers, turn), []
        while True:
            replies.append(model.chat(messages, 0.0, JUDGE_TOKENS, SEED).text)
            found = judge.rating(replies[-1])
            if found is not None or len(replies) == ASKED:
                break
            messages = [*messages, {"role": "assistant", "content": replies[-1] or "..."}]
            messages.append({"role": "user", "content": judge.AGAIN})
        ratings.append(found)
        said.append(replies)
    return {"key": wanted, "ratings": ratings, "replies": said}


def collect(
    folder: Path,
    keys: dict[int, str],
    make: Callable[[int], Record],
    parallel: int,
    again: Callable[[Record], bool] = lambda record: False,
) -> dict[int, Record]:
    """question_id -> record, read from `folder` or made, at most `parallel` at once; `again` says which to make anew.

    A failure is raised when those on their way have ended; what was made is kept.
    """
    found = {number: stored(folder / f"{number}.json", wanted) for number, wanted in keys.items()}
    records = {number: record for number, record in found.items() if record and not again(record)}
    todo = [number for number in keys if number not in records]
    print(f"{folder}: {len(records)} of {len(keys)} are there, {len(todo)} to ask for", flush=True)

    def work(number: int) -> Record:
        record = make(number)
        write_text(folder / f"{number}.json", json.dumps(record, ensure_ascii=False, indent=1) + "\n")
        return record

    with ThreadPoolExecutor(parallel) as pool:
        futures = {number: pool.submit(work, number) for number in todo}
        try:
            for future in as_completed(futures.values()):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    records |= {number: future.result() for number, future in futures.items()}
    return {number: records[number] for number in keys}
