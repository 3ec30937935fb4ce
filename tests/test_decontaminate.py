"""Evaluation text is found in training rows, and ordinary text is not."""

import json

import pytest
import yaml
from conftest import ROOT

from hermes3.mix.build import build
from hermes3.mix.decontaminate import FEW, Index, _task_manager, record
from hermes3.mix.spec import Decontaminate, load

QUESTION = "A baker has 17 trays with 23 rolls on each tray and sells 5 trays, how many rolls are left at noon?"
CHINESE = "小明有十七个盘子，每个盘子上有二十三个面包，他卖掉了五盘，还剩下多少个？"
EVAL = ROOT.parent / "shared/data/eval"
WORDS = QUESTION.split()


@pytest.fixture
def index(tmp_path):
    def _index(*docs, settings=(), **one):
        (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, docs)))
        return Index(Decontaminate(against=[{"path": "set.jsonl", **one}], **dict(settings)), tmp_path)

    return _index


def test_thirteen_words_in_common_are_found_and_twelve_or_two_messages_are_not_enough(index):
    one = index({"question": QUESTION, "answer": "276"})
    text = "Hello!\nA BAKER has 17 trays -- with 23 rolls, on each tray and sells nothing."
    assert one.hits(["nothing here", text]) == {1: "set: a baker has 17 trays with 23 rolls on each tray and sells"}
    assert one.hits(["A baker has 17 trays with 23 rolls on each tray and buys more"]) == {}
    assert one.hits([" ".join(WORDS[:10]), " ".join(WORDS[10:20])]) == {}


DISGUISES = {
    "no-break spaces": "\u00a0".join(WORDS),
    "other spaces": "\u2003".join(WORDS) + "\u3000",
    "zero-width spaces for blanks": "\u200b".join(WORDS),
    "zero-width spaces within words": " ".join(word[:1] + "\u200b" + word[1:] for word in WORDS),
    "soft hyphens": " ".join(word[:2] + "\u00ad" + word[2:] for word in WORDS),
    "dashes": "\u2014".join(WORDS),
    "dots and quotes": "\u2026\u201c".join(WORDS),
    "full width": "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in QUESTION),
    "upper case": QUESTION.upper(),
    "JSON with escapes": json.dumps({"text": QUESTION.replace(" ", "\n")}),
    "underscores": "_".join(WORDS),
    "HTML": "&nbsp;".join(WORDS),
    "a list in JSON": json.dumps({"words": WORDS}),
    "escapes beyond ASCII": json.dumps("\u2014".join(WORDS)),
}


@pytest.mark.parametrize("how", DISGUISES)
def test_a_question_in_disguise_is_found(how, index):
    assert 0 in index({"question": QUESTION}).hits([f"Here: {DISGUISES[how]}"])


def test_chinese_is_found_by_its_characters(index):
    one = index({"question": CHINESE})
    assert (
        0 in one.hits([f"请问：{CHINESE[4:30]}"]) and one.hits(["小明有十七本书，每本书有二十三页，还剩下多少？"]) == {}
    )


def test_a_short_question_is_searched_for_whole_and_a_shorter_one_counted(index):
    one = index({"question": "Which planet has the most moons of all?"})
    whole, part = "So: which planet has the most moons of all? I say", "which planet has the most moons"
    assert one.hits([whole, part]) == {0: "set: which planet has the most moons of all"}
    assert index({"q": "2 + 2?"}, {"q": QUESTION}, {"q": "True or False"}).unsearched == {"set": 2}


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


def test_all_that_trains_or_conditions_is_searched(base, tmp_path):
    """System prompt, tools, calls, responses, both answers of a pair; built, so that each place reaches the search."""
    tools = [{"type": "function", "function": {"name": "ask", "parameters": {}}}]
    calls = [{"type": "function", "function": {"name": "ask", "arguments": {"problem": QUESTION}}}]
    user, answer = {"role": "user", "content": "Ask."}, {"role": "assistant", "content": "33"}
    called = {"role": "assistant", "content": "", "tool_calls": calls}
    plain = {**called, "tool_calls": [{"type": "function", "function": {"name": "ask", "arguments": {}}}]}
    rows = {
        "system": {"messages": [{"role": "system", "content": QUESTION}, user, answer]},
        "answer": {"messages": [user, {**answer, "content": QUESTION}]},
        "call": {"messages": [user, called], "tools": tools},
        "response": {
            "messages": [user, plain, {"role": "tool", "name": "ask", "content": QUESTION}, answer],
            "tools": tools,
        },
        "tool": {"messages": [user, answer], "tools": [{"function": {"name": "ask", "description": QUESTION}}]},
        "clean": {"messages": [user, answer]},
    }
    pairs = {
        "chosen": {"messages": [user], "chosen": QUESTION, "rejected": "No."},
        "rejected": {"messages": [user], "chosen": "Yes.", "rejected": QUESTION},
        "clean": {"messages": [user], "chosen": "Yes.", "rejected": "No."},
    }
    (tmp_path / "set.jsonl").write_text(json.dumps({"question": QUESTION}))
    for kind, adapter, every in (("sft", "messages", rows), ("preference", "preference", pairs)):
        (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"id": name, **row}) for name, row in every.items()))
        source = {"name": "s", "path": "rows.jsonl", "adapter": adapter, "licence": "our own"}
        spec = {"name": kind, "kind": kind, "tokenizer": str(base), "sequence_len": 1024, "seed": 1}
        spec |= {"decontaminate": {"against": [{"path": "set.jsonl"}]}, "categories": {"math": {"sources": [source]}}}
        (tmp_path / "spec.yml").write_text(yaml.safe_dump(spec))
        manifest = build(tmp_path / "spec.yml", tmp_path / kind, tmp_path, quiet=True).manifest
        assert manifest["rejects"] == {"decontaminate/evaluation_text": len(every) - 1}
        assert manifest["total"]["rows"] == 1


def test_the_shipped_specs_search_for_table_5_but_for_two_of_its_rows(in_root):
    tasks = set(_task_manager().all_tasks)
    for name in ("hermes3_sft", "hermes3_dpo", "hermes3_dataset"):
        spec = load(ROOT / f"data_mixes/{name}.yml")
        assert {one.task for one in spec.decontaminate.against} <= tasks
        assert record(spec, None)["not_searched"] == ["GPQA", "MT-Bench"]


def test_an_lm_eval_task_is_read_by_lm_eval(samples, tmp_path, monkeypatch):
    """On the split that it scores, where none is named."""
    (tmp_path / "outputs/tiny").mkdir(parents=True)
    (tmp_path / "outputs/tiny/data").symlink_to(samples)
    monkeypatch.chdir(tmp_path)
    index = Index(Decontaminate(against=[{"task": "tiny_choice"}]), tmp_path)
    assert index.grams or index.unsearched["tiny_choice"]
    with pytest.raises(ValueError, match="tiny_choice: no split dev; it has test"):
        Index(Decontaminate(against=[{"task": "tiny_choice", "split": "dev"}]), tmp_path)


def test_an_evaluation_set_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="no_such_task: not a task of the installed lm-eval"):
        Index(Decontaminate(against=[{"task": "no_such_task"}]), tmp_path)
    with pytest.raises(ValueError, match="no file .*nowhere.jsonl; check --data-root"):
        Index(Decontaminate(against=[{"path": "nowhere.jsonl"}]), tmp_path)
