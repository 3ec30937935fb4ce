"""MT-Bench on loopback. Model and judge are a stand-in server: it answers by rule, so that every mean is known."""

import json
import statistics
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from conftest import ROOT
from typer.testing import CliRunner

from hermes3.cli import app
from hermes3.evaluate import mt_bench
from hermes3.evaluate.mt_bench import SETUP, Endpoint, load_questions, read_rating, run
from hermes3.evaluate.run import setting_of
from hermes3.results.lm_eval import read_evaluation
from hermes3.results.suite import load

DATA = yaml.safe_load((ROOT / "tests/evaluation.yml").read_text(encoding="utf-8"))
QUESTIONS, RATINGS = DATA["questions"], DATA["ratings"]


class StandIn(ThreadingHTTPServer):
    """Speaks the OpenAI form. As `model` it repeats what it was asked; as a judge it rates by `rate(prompt)`."""

    def __init__(self, rate=lambda prompt: f"Rating: [[{1 + len(prompt) % 10}]]", before=lambda request: None, port=0):
        self.requests, self.rate, self.before, self.busy, self.most = [], rate, before, [], 0
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __exit__(self, *args):
        self.shutdown()
        self.server_close()

    def asked(self, name):
        return [request for request in self.requests if request["model"] == name]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.requests.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
        server.busy.append(self)
        server.most = max(server.most, len(server.busy))
        wrong, text = server.before(body), body["messages"][-1]["content"]
        server.busy.remove(self)
        text = server.rate(text) if "judge" in body["model"] else f"You said: {text}"
        answer = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
        payload = json.dumps(wrong or answer | {"usage": {"prompt_tokens": 10, "completion_tokens": 3}}).encode()
        self.send_response(wrong["status"] if wrong else 200)
        self.send_header("Content-Length", str(len(payload)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(payload)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    return path


def bench(server, questions, out, model="model", judge="judge", parallel=3, price=(0, 0), max_unrated=0, more=None):
    ends = [Endpoint(server.url, name, None, 5.0, parallel, price) for name in (model, judge)]
    run(load_questions(questions, more), *ends, out, None, max_unrated)


def results_of(out, number=0):
    return json.loads(sorted(out.rglob("results_*.json"))[number].read_text())


def test_scores_are_the_means_of_the_ratings(questions, tmp_path, capsys):
    with StandIn() as server:
        bench(server, questions, tmp_path / "out")
    by_hand, by_category = [], {}
    for question in load_questions(questions):
        texts = [f"You said: {turn}" for turn in question.turns]
        by_hand.append([1 + len(mt_bench.judge_prompt(question, texts, n)[-1]["content"]) % 10 for n in (0, 1)])
        by_category.setdefault(question.category, []).append(sum(by_hand[-1]) / 2)
    stage = read_evaluation("ours", tmp_path / "out")  # as the report reads it
    means = {metric: stage.scores["mt_bench", metric, "none"].value for metric in mt_bench.METRICS}
    first, second = (statistics.mean(column) for column in zip(*by_hand, strict=True))
    assert means == {"turn_1": first, "turn_2": second, "score": (first + second) / 2}
    score = stage.scores["mt_bench", "score", "none"]
    assert score.n == 4 and score.scale == 1 and score.higher_is_better and not stage.skipped
    results = results_of(tmp_path / "out")
    assert results["mt_bench"]["categories"] == {name: statistics.mean(of) for name, of in by_category.items()}
    assert results["mt_bench"]["judge"]["model"] == "judge" and "judged by judge" in results["versions"]["mt_bench"]
    assert f"MT-Bench {score.value:.2f} ({score.low:.2f} to {score.high:.2f})" in capsys.readouterr().out


def test_the_second_turn_holds_the_first_answer_and_the_judge_sees_what_it_needs(questions, tmp_path, capsys):
    with StandIn(before=lambda request: time.sleep(0.02)) as server:
        bench(server, questions, tmp_path / "out", parallel=2)
    assert {request["path"] for request in server.requests} == {"/v1/chat/completions"} and server.most == 2
    turns = {request["messages"][0]["content"]: request for request in server.asked("model") if request["messages"][2:]}
    second = turns["What is 2 + 2?"]["messages"]
    assert [one["role"] for one in second] == ["user", "assistant", "user"]
    assert [one["content"] for one in second[1:]] == ["You said: What is 2 + 2?", "And twice that?"]
    warmth = {asked: request["temperature"] for asked, request in turns.items()}
    assert warmth["Write a line."] == 0.7 and warmth["What is 2 + 2?"] == 0 and warmth["Why is ice light?"] == 0.1
    seen = [request["messages"][-1]["content"] for request in server.asked("judge")]
    assert len(seen) == 8 and {request["temperature"] for request in server.asked("judge")} == {0}
    of_math = [prompt for prompt in seen if "What is 2 + 2?" in prompt]
    assert ["Reference for message 2 ===\n8" in prompt for prompt in sorted(of_math, key=len)] == [False, True]
    assert all("Reference for message 1 ===\n4" in prompt for prompt in of_math)
    assert not any("Reference" in prompt or "n/a" in prompt for prompt in seen if "Write a line." in prompt)
    output = capsys.readouterr().out
    assert "without reference: [3]" in output and "'ratings': [80, 24]" in output
    row = {"question_id": 3, "choices": [{"index": 0, "turns": ["It is 6.", "It is 3."]}]}
    (tmp_path / "gpt-4.jsonl").write_text(json.dumps(row) + "\n")
    with StandIn() as server:
        bench(server, questions, tmp_path / "out", price=(1e6, 1e6), more=tmp_path / "gpt-4.jsonl")
    assert "dollars: 26.0" in capsys.readouterr().out
    seen = [request["messages"][-1]["content"] for request in server.requests]
    assert len(seen) == 2 and all("Reference for message 1 ===\nIt is 6." in prompt for prompt in seen)
    assert results_of(tmp_path / "out", 1)["mt_bench"]["without_reference"] == []


@pytest.mark.parametrize("reply", RATINGS)
def test_a_rating_is_one_number_from_1_to_10_on_any_line(reply):
    assert read_rating(reply) == RATINGS[reply]


def test_a_judge_that_gives_no_rating_is_asked_again_and_never_averaged_in_silence(questions, tmp_path, capsys):
    def stubborn(prompt):
        if prompt == SETUP.again:
            stubborn.again += 1
            return "Rating: [[6]]" if stubborn.again == 1 else "No."
        return "No." if "ice light" in prompt else "A line, I would say." if "a line." in prompt else "Rating: [[6]]"

    stubborn.again, out = 1, tmp_path / "out"
    questions.write_text(questions.read_text().split("\n", 1)[1])
    with StandIn(stubborn) as server:
        with pytest.raises(ValueError, match="judge gave no rating for question 4; .*--max-unrated 1"):
            bench(server, questions, out)
        assert not list(out.rglob("results_*.json"))
        before = len(server.requests)
        bench(server, questions, out, max_unrated=1)
        assert len(server.requests) - before == 2 * SETUP.judge_tries  # that question's two turns, and nothing else
        assert results_of(out)["mt_bench"]["unrated"] == [4] and "unrated: [4]" in capsys.readouterr().out
        assert results_of(out)["n-samples"]["mt_bench"] == {"original": 3, "effective": 2}
        assert read_evaluation("ours", out).scores["mt_bench", "score", "none"].value == 6
        stubborn.again = 0  # the next reply holds a rating
        judge = Endpoint(server.url, "judge", None, 5.0)
        record = mt_bench._rate(load_questions(questions)[2], ["a", "b"], judge)
        assert record["ratings"] == [6, None] and [len(replies) for replies in record["replies"]] == [2, 3]


def test_a_server_that_dies_leaves_what_was_answered_and_the_rest_is_asked_later(questions, tmp_path, capsys):
    out, dead = tmp_path / "out", threading.Event()

    def die(request):
        if len(server.asked("model")) > 4:
            dead.set()
        return {"status": 503, "error": "gone"} if dead.is_set() else None

    with StandIn(before=die) as server, pytest.raises(ValueError, match=f"{server.url}: .*503"):
        bench(server, questions, out, parallel=1)
    with pytest.raises(ValueError, match="no answer in 5 tries"):  # nobody listens any more
        bench(server, questions, out, parallel=1)
    assert sorted(path.name for path in (out / "answers").iterdir()) == ["1.json", "2.json"]
    with StandIn(port=server.server_port) as again:
        bench(again, questions, out)
        assert [len(again.asked(name)) for name in ("model", "judge")] == [4, 4]
    with StandIn() as elsewhere:  # only its name tells that it is the same model, which is said
        bench(elsewhere, questions, out)
        assert not elsewhere.requests
    kept = f"answers from {again.url} are kept: the model is taken to be the same by its name"
    assert kept in capsys.readouterr().out


def test_answers_of_a_known_model_are_resumed_at_any_address(base, questions, tmp_path):
    """A folder's files tell the model, wherever it is served; another judge rates the same answers anew."""
    out, model = tmp_path / "out", str(base)
    with StandIn() as first:
        bench(first, questions, out, model)
    results = results_of(out)  # with lm-eval's facts, so that the report takes both from one folder
    setting = setting_of(base, load("tiny"), "hf", "")
    facts = [results[key] for key in ("chat_template_sha", "model_name", "lm_eval_version")]
    assert facts == [setting["chat_template_sha"], setting["model"], setting["versions"]["lm_eval"]]
    (out / "answers/2.json").write_text('{"key": "half')
    with StandIn() as second:
        bench(second, questions, out, model)
        assert len(second.asked(model)) == 2 and not second.asked("judge")
        bench(second, questions, out, model, "judge/other")
        assert len(second.asked(model)) == 2 and len(second.asked("judge/other")) == 8
        bench(second, questions, out, model, "judge__other")  # its folder has the same name
        assert len(second.asked("judge__other")) == 8


@pytest.mark.parametrize(
    ("before", "requests", "message"),
    [
        (lambda request: {"status": 401, "error": "no such key"}, 1, "401 Unauthorized.*no such key"),
        (lambda request: {"status": 200, "detail": "hello"}, 1, "not the form of a chat completion"),
        (lambda request: time.sleep(0.4), 5, "no answer in 5 tries.*timed out"),
    ],
)
def test_a_server_that_gives_no_answer_is_named_and_a_busy_one_is_tried_again(before, requests, message):
    def ask():
        words = {"messages": [{"role": "user", "content": "x"}], "temperature": 0, "max_tokens": 9, "seed": 1}
        return Endpoint(server.url, "model", None, 0.2).chat(**words)

    with StandIn(before=before) as server, pytest.raises(ValueError, match=f"{server.url}: {message}"):
        ask()
    assert len(server.requests) == requests
    busy = [429, 500]
    with StandIn(before=lambda request: {"status": busy.pop()} if busy else None) as server:
        assert ask() == ("You said: x", False) and len(server.requests) == 3


def test_keys_go_to_their_own_server_and_are_written_nowhere(questions, tmp_path, monkeypatch):
    monkeypatch.setenv("HERMES3_MODEL_API_KEY", "model-secret")
    monkeypatch.setenv("HERMES3_JUDGE_API_KEY", "judge-secret")
    with StandIn() as model, StandIn() as grader:
        words = ["mt-bench", "model", "--endpoint", model.url, "--judge-url", grader.url, "--judge-model", "judge"]
        words += ["--questions", str(questions), "--out", str(tmp_path / "out")]
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert {request["key"] for request in model.requests} == {"Bearer model-secret"}
        assert {request["key"] for request in grader.requests} == {"Bearer judge-secret"}
    files = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 10 and not any("secret" in text for text in [*files, done.output])
    with pytest.raises(ValueError, match="^localhost: .*no secrets in the address"):
        Endpoint("http://user:secret@localhost/v1", "model", None, 5)


@pytest.mark.parametrize(("line", "message"), DATA["bad_questions"].items())
def test_a_bad_question_file_is_refused(questions, line, message):
    questions.write_text(questions.read_text() + line + "\n")
    with pytest.raises(ValueError, match=message):
        load_questions(questions)
