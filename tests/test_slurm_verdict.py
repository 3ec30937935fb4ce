"""What a crash is told by its logs, those of tests/last_words.yml and some which Python itself has written here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hermes3.slurm.verdict import MAX_CRASHES, verdict

STEP = "print({'loss': '1.0', 'epoch': '0.25'})\n"
KILLED = "import os\n" + STEP + "os.kill(os.getpid(), 9)"
FILES = [Path(__file__).with_name(f"{name}.yml") for name in ("last_words", "long_words", "attempts")]
WORDS, LONG, ATTEMPTS = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in FILES)
SHORT = {
    "step": "{'loss': '1.0', 'epoch': '0.25'}",
    "peer": "!RuntimeError: NCCL error: remote process exited",
    "while": "\nDuring handling of the above exception, another exception occurred:\n",
}
ABOVE = 'Traceback (most recent call last):\n  File "train.py", line 1, in <module>\n'


def attempt(job: Path, number: int, *ranks: str) -> Path:
    """The folder of an attempt with a log a rank, each that of a Python program."""
    folder = job / f"attempt_{number}"
    folder.mkdir(parents=True)
    for rank, program in enumerate(ranks):
        with (folder / f"rank_{rank}.log").open("w") as log:
            subprocess.run([sys.executable, "-u", "-c", program], stdout=log, stderr=log)
    return folder


def spoken(job: Path, number: int, *ranks: str, begun: int | None = None) -> Path:
    """The folder of an attempt with these logs, written as in last_words.yml; from checkpoint `begun` of job/run."""
    folder = attempt(job, number)
    for rank, text in enumerate(ranks):
        text = "\n".join(SHORT.get(line, line) for line in text.splitlines())
        (folder / f"rank_{rank}.log").write_text(re.sub("^!", ABOVE, text, flags=re.MULTILINE) + "\n")
        (folder / f"rank_{rank}.node").write_text(f"n{rank + 1}\n")
    if begun is not None:
        (folder / "start.json").write_text(json.dumps({"output_dir": str(job / "run"), "step": begun}))
    return folder


@pytest.mark.parametrize("words", WORDS, ids=lambda words: words["fault"])
def test_whose_fault_the_last_words_tell(tmp_path, words):
    folder = spoken(tmp_path, 1, *words["ranks"])
    if "node_log" in words:
        (folder / "node_n2.log").write_text(words["node_log"])
    again, why = verdict(folder)
    bad = tmp_path / "bad_nodes"
    assert (again, bad.read_text().split("\t")[0] if bad.exists() else None) == (words["again"], words.get("node"))
    assert words["shown"] in why.partition("\n")[2], why
    assert "node" not in words or f" on {words['node']}," in why and f"{words['node']} alone has met it" in why


@pytest.mark.parametrize("words", LONG, ids=lambda words: words["last"])
@pytest.mark.parametrize("log", ["rank_0.log", "preprocess.log"])
def test_an_error_of_many_lines_or_without_a_traceback_ends_the_job(tmp_path, words, log):
    first, second = attempt(tmp_path, 1, words["program"]), attempt(tmp_path, 2)
    (first / "rank_0.log").rename(first / log)
    (second / log).write_bytes((first / log).read_bytes())
    verdict(first)
    again, why = verdict(second)
    assert not again and words["last"] in why and f", {log}, before the first step: " in why


@pytest.mark.parametrize("job", ATTEMPTS["one_after_another"], ids=lambda job: job["fault"])
def test_attempts_one_after_another(tmp_path, job):
    (tmp_path / "bad_nodes").write_text(job.get("bad_nodes", ""))
    for number, (ranks, expected, shown) in enumerate(job["attempts"], 1):
        again, why = verdict(spoken(tmp_path, number, *ranks))
        assert again == expected and shown in why, why


def test_of_two_errors_the_first_in_time_counts(tmp_path):
    """A rank's clean-up fails long after another has met NCCL's error; a wrong value, and what comes of it at once."""
    folder = spoken(tmp_path, 1, "step\n!KeyError: 'group'", "step\n!RuntimeError: NCCL error: unhandled system error")
    os.utime(folder / "rank_1.log", (1e9, 1e9))
    assert verdict(folder)[0]
    os.utime(folder / "rank_0.log", (1e9 + 1, 1e9 + 1))
    assert not verdict(folder)[0]


def test_ranks_killed_twice_at_one_place_are_not_one_fault(tmp_path):
    """As a node does that is short of memory; nor do words count after which the ranks went on."""
    for number in (1, 2):
        folder = attempt(tmp_path, number, KILLED, "raise SystemExit(1)")
        (folder / "preprocess.log").write_text(f"{ABOVE}ValueError: no rows\n")
        again, why = verdict(folder)
        assert verdict(spoken(tmp_path / "b", number, "!ValueError: no network" + "\nloading" * 99))[0]
        assert again and "a rank was killed from outside" in why and "epoch 0.25" in why


def test_crashes_are_capped(tmp_path, monkeypatch):
    for number in range(1, MAX_CRASHES):  # a launch that failed is no crash of the same kind
        assert verdict(attempt(tmp_path, number))[0]
    again, why = verdict(attempt(tmp_path, MAX_CRASHES))
    assert not again and "no rank has started" in why
    monkeypatch.setenv("HERMES3_MAX_CRASHES", "99")
    assert verdict(attempt(tmp_path, MAX_CRASHES + 1))[0]


@pytest.mark.parametrize(("before", "after", "words", "shown"), ATTEMPTS["notified"])
def test_what_ends_on_notice_has_saved_or_is_a_crash(tmp_path, before, after, words, shown):
    folder = spoken(tmp_path, 1, words, begun=before)
    for step in {before, after} - {0}:
        (tmp_path / f"run/checkpoint-{step}").mkdir(parents=True)
        (tmp_path / f"run/checkpoint-{step}/complete.json").write_text(json.dumps({"step": step, "epoch": 1.0}))
    again, why = verdict(folder, notified=True)
    assert again and shown in why and (folder / "crash.json").exists() == (before == after)


def test_notices_without_a_checkpoint_end_the_job(tmp_path):
    """Each attempt comes a step further than the one before, from the same checkpoint."""
    said = [spoken(tmp_path, n, f"{{'loss': '1.0', 'epoch': '0.{n}'}}", begun=0) for n in range(1, MAX_CRASHES + 1)]
    told = [verdict(folder, notified=True)[0] for folder in said]
    assert told == [True] * (MAX_CRASHES - 1) + [False]
