"""Evaluation text is found in training rows, and ordinary text is not."""

import json

import pytest
from conftest import ROOT

from hermes3.mix.decontaminate import BOILERPLATE, Index
from hermes3.mix.ngrams import Words
from hermes3.mix.spec import Decontaminate

QUESTION = "A baker has 17 trays with 23 rolls on each tray and sells 5 trays, how many rolls are left at noon?"
EVAL = ROOT.parent / "shared/data/eval"


@pytest.fixture
def index(tmp_path):
    def _index(*docs, **settings):
        (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, docs)))
        return Index(Decontaminate(against=[{"path": "set.jsonl"}], **settings), tmp_path)

    return _index


def hits(index, *texts):
    return index.hits(Words(list(texts)))


def test_thirteen_words_in_common_are_found_whatever_case_and_punctuation(index):
    one = index({"question": QUESTION, "answer": "276"})
    said = "Hello!\nA BAKER has 17 trays -- with 23 rolls, on each tray and sells nothing."
    assert hits(one, "nothing here", said) == {1: "set: a baker has 17 trays with 23 rolls on each tray and sells"}


def test_twelve_words_are_not_enough_nor_thirteen_in_two_messages(index):
    one = index({"question": QUESTION})
    assert hits(one, "A baker has 17 trays with 23 rolls on each tray and buys more") == {}
    words = QUESTION.split()
    assert hits(one, " ".join(words[:10]), " ".join(words[10:20])) == {}


def test_a_short_question_is_searched_for_whole_and_a_shorter_one_counted(index):
    one = index({"question": "Which planet has the most moons of all?"})
    whole, part = "So: which planet has the most moons of all? I say", "which planet has the most moons"
    assert hits(one, whole, part) == {0: "set: which planet has the most moons of all"}
    assert index({"q": "2 + 2?"}, {"q": QUESTION}, {"q": "True or False"}).unsearched == {"set": 2}


def test_what_many_questions_share_is_not_sought(index):
    shared = "Answer the following multiple choice question with the letter of the one correct option"
    docs = [{"q": f"{shared}: number {i} is which of the two numbers {i} and {i + 1}"} for i in range(BOILERPLATE + 1)]
    one = index(*docs)
    assert hits(one, shared) == {}
    assert 0 in hits(one, docs[3]["q"])


@pytest.mark.skipif(not EVAL.is_dir(), reason="needs the real files")
def test_every_question_of_the_real_sets_is_found_in_itself():
    files = ["gsm8k_test.jsonl", "mt_bench_question.jsonl", "agieval/logiqa-en.jsonl", "bbh/snarks.json"]
    index = Index(Decontaminate(against=[{"path": name} for name in files]), EVAL)
    questions = [json.loads(line)["question"] for line in (EVAL / files[0]).open(encoding="utf-8")]
    assert len(hits(index, *questions)) == len(questions) == 1319
    words = [text.split() for text in questions]
    scrambled = [" ".join(sorted(text)) for text in words]
    assert hits(index, *scrambled) == {}


def test_an_lm_eval_task_is_read_by_lm_eval(index, tmp_path, chain):
    index = Index(Decontaminate(against=[{"task": "tiny_choice", "split": "test"}]), tmp_path)
    assert index.grams or index.unsearched["tiny_choice"]


def test_an_evaluation_set_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="no_such_task: not a task of the installed lm-eval"):
        Index(Decontaminate(against=[{"task": "no_such_task"}]), tmp_path)
    with pytest.raises(ValueError, match="no file .*nowhere.jsonl; check --data-root"):
        Index(Decontaminate(against=[{"path": "nowhere.jsonl"}]), tmp_path)
