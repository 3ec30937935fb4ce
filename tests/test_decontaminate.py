"""Evaluation text is found in training rows, and ordinary text is not."""

import json

import pytest
import yaml
from conftest import ROOT

from hermes3.mix.build import build
from hermes3.mix.decontaminate import FEW, Index, disguised, record, task_manager
from hermes3.mix.spec import Decontaminate, load

LEAKS = yaml.safe_load((ROOT / "tests/leaks.yml").read_text(encoding="utf-8"))
QUESTION = LEAKS["question"]
CHINESE = "小明有十七个盘子，每个盘子上有二十三个面包，他卖掉了五盘，还剩下多少个？"
EVAL = ROOT.parent / "shared/data/eval"
WORDS = QUESTION.split()


@pytest.fixture
def index(tmp_path):
    def _index(*docs, **one):
        (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, docs)))
        return Index(Decontaminate(against=[{"path": "set.jsonl", **one}]), tmp_path)

    return _index


def test_thirteen_words_in_common_are_found_and_twelve_or_two_messages_are_not_enough(index):
    one = index({"question": QUESTION, "answer": "276"})
    text = "Hello!\nA BAKER has 17 trays -- with 23 rolls, on each tray and sells nothing."
    assert one.hits(["nothing here", text]) == {1: "set: a baker has 17 trays with 23 rolls on each tray and sells"}
    assert one.hits(["A baker has 17 trays with 23 rolls on each tray and buys more"]) == {}
    assert one.hits([" ".join(WORDS[:10]), " ".join(WORDS[10:20])]) == {}
    one = index({"question": "Which planet has the most moons of all?"})  # shorter, so it is searched for whole
    whole, part = "So: which planet has the most moons of all? I say", "which planet has the most moons"
    assert one.hits([whole, part]) == {0: "set: which planet has the most moons of all"}
    assert index({"q": "2 + 2?"}, {"q": QUESTION}, {"q": "True or False"}).unsearched == {"set": 2}


def test_a_question_in_disguise_is_found_and_so_are_chinese_characters(index):
    texts = disguised(QUESTION)
    texts += [mark.join(WORDS) for mark in ("\u2003", "\u2026\u201c", "_", "&nbsp;")]  # wide space, dots and quotes
    texts += [json.dumps({"text": QUESTION.replace(" ", "\n")}), json.dumps({"words": WORDS})]
    texts += [json.dumps("\u2014".join(WORDS)), " ".join(word[:2] + "\u00ad" + word[2:] for word in WORDS)]
    assert [i for i, text in enumerate(texts) if not index({"question": QUESTION}).hits([f"Here: {text}"])] == []
    one = index({"question": CHINESE})
    assert one.hits([f"请问：{CHINESE[4:30]}", "小明有十七本书，每本书有二十三页，还剩下多少？"]).keys() == {0}


def test_answers_are_no_questions_unless_the_spec_names_their_field(index):
    answer = "A weir is a low wall that is built across a river to raise the water level behind it."
    docs = [{"question": "What is a weir?", "answer": answer, "meta": {"solution": answer}}]
    one = index(*docs)
    assert one.hits([answer]) == {} and one.unsearched == {"set": 1}
    assert 0 in index(*docs, fields=["question", "answer"]).hits([answer])
    chat = [{"role": "user", "content": "What is a weir?"}, {"role": "assistant", "content": answer}]
    assert index({"messages": chat}).unsearched == {"set": 1}
    with pytest.raises(ValueError, match="no field stem; there are question, answer, meta"):
        index(*docs, fields=["stem"])


def test_what_most_questions_share_is_not_sought_but_passages_are(index):
    shared = "Answer the following multiple choice question with the letter of the one correct option"
    docs = [{"q": f"{shared}: number {i} is which of the two numbers {i} and {i + 1}"} for i in range(FEW + 1)]
    one = index(*docs)
    assert one.hits([shared]) == {} and one.shared["set"] > 0
    assert 0 in one.hits([docs[3]["q"]])
    passages = [f"{name} {QUESTION}" for name in ("First", "Second")]
    as_field = [{"passage": QUESTION, **doc} for doc in docs]
    within = [{"q": f"{passages[i % 2].replace('baker', f'baker{i % 2}')} Why, {i}?"} for i in range(4 * FEW)]
    long = [{"q": f"{QUESTION} {' '.join(f'then{i}' for i in range(20))} Why, {i}?"} for i in range(FEW + 1)]
    for docs, text in ((as_field, QUESTION), (within, QUESTION.replace("baker", "baker1")), (long, QUESTION)):
        assert 0 in index(*docs).hits([text])


@pytest.mark.skipif(not EVAL.is_dir(), reason="needs the real files")
def test_every_question_of_the_real_sets_is_found_in_itself():
    files = ["gsm8k_test.jsonl", "mt_bench_question.jsonl", "agieval/logiqa-en.jsonl", "bbh/snarks.json"]
    index = Index(Decontaminate(against=[{"path": name} for name in files]), EVAL)
    questions = [json.loads(line)["question"] for line in (EVAL / files[0]).open(encoding="utf-8")]
    assert len(index.hits(questions)) == len(questions) == 1319
    assert index.hits([" ".join(sorted(text.split())) for text in questions]) == {}
    spec = load(ROOT / "data_mixes/hermes3_sft.yml")
    planted = record(spec, index)["planted"]
    assert all(one["planted"] == 200 and one["found"] >= 198 for one in planted.values()), planted


@pytest.mark.parametrize(("kind", "adapter"), [("sft", "messages"), ("preference", "preference")])
def test_all_that_trains_or_conditions_is_searched(kind, adapter, base, tmp_path):
    """System prompt, tools, calls, responses, both answers of a pair; built, so that each place reaches the search."""
    (tmp_path / "set.jsonl").write_text(json.dumps({"question": QUESTION}))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, LEAKS[adapter])))
    source = {"name": "s", "path": "rows.jsonl", "adapter": adapter, "licence": "our own"}
    spec = {"name": kind, "kind": kind, "tokenizer": str(base), "sequence_len": 1024, "seed": 1}
    spec |= {"decontaminate": {"against": [{"path": "set.jsonl"}]}, "categories": {"math": {"sources": [source]}}}
    (tmp_path / "spec.yml").write_text(yaml.safe_dump(spec))
    manifest = build(tmp_path / "spec.yml", tmp_path / kind, tmp_path, quiet=True).manifest
    assert manifest["rejects"] == {"decontaminate/evaluation_text": len(LEAKS[adapter]) - 1}


def test_the_shipped_specs_search_for_table_5_but_for_two_of_its_rows(in_root):
    tasks = set(task_manager().all_tasks)
    for name in ("hermes3_sft", "hermes3_dpo", "hermes3_dataset"):
        spec = load(ROOT / f"data_mixes/{name}.yml")
        assert {one.task for one in spec.decontaminate.against} <= tasks
        assert record(spec, None)["not_searched"] == ["GPQA", "MT-Bench"]


def test_an_lm_eval_task_is_read_by_lm_eval_and_a_set_that_is_not_there_is_named(samples, tmp_path, monkeypatch):
    (tmp_path / "outputs/tiny").mkdir(parents=True)
    (tmp_path / "outputs/tiny/data").symlink_to(samples)
    monkeypatch.chdir(tmp_path)
    index = Index(Decontaminate(against=[{"task": "tiny_choice"}]), tmp_path)  # on the split that it scores
    assert index.grams or index.unsearched["tiny_choice"]
    for one, message in (
        ({"task": "tiny_choice", "split": "dev"}, "tiny_choice: no split dev; it has test"),
        ({"task": "no_such_task"}, "no_such_task: not a task of the installed lm-eval"),
        ({"path": "nowhere.jsonl"}, "no file .*nowhere.jsonl; check --data-root"),
    ):
        with pytest.raises(ValueError, match=message):
            Index(Decontaminate(against=[one]), tmp_path)
