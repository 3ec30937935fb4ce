"""Evaluation: which models are refused, what lm_eval is told, and how generated text is scored."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT

from hermes3.evaluate import run
from hermes3.evaluate.run import command, model_args, prompt_start
from hermes3.results.suite import Protocol, load

sys.path.insert(0, str(ROOT / "eval/tasks"))
SCORED = yaml.safe_load((ROOT / "tests/evaluation.yml").read_text(encoding="utf-8"))
ANSWERS = [(kind, *answer) for kind in ("tool_calls", "json") for answer in SCORED[kind]["answers"]]


@pytest.mark.parametrize(("kind", "text", "valid", "exact"), ANSWERS)
def test_tool_calls_and_json_are_scored(kind, text, valid, exact):
    import chat_task

    score = {"tool_calls": chat_task.score_tool_call, "json": chat_task.score_json}[kind]
    assert score({"row": json.dumps(SCORED[kind]["row"])}, [text]) == {"valid": valid, "exact": exact}


def test_a_prompt_with_tools_is_what_the_template_renders(tokenizer):
    import chat_task

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    row = {"messages": messages, "tools": SCORED["tool_calls"]["row"]["tools"]}
    ours = tokenizer.apply_chat_template(chat_task.prompt({"row": json.dumps(row)}), tokenize=False)
    assert ours == tokenizer.apply_chat_template(row["messages"], tools=row["tools"], tokenize=False)


@pytest.mark.parametrize("ends", [False, True])
def test_an_answer_that_is_cut_has_not_ended(base, ends):
    """lm-eval's own generation: a model of random weights never ends its turn, one biased to the end of turn does."""
    import chat_task
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    if ends:
        bias = torch.zeros(model.vocab_size)
        bias[tokenizer.convert_tokens_to_ids(chat_task.END)] = 100
        model.lm_head.register_forward_hook(lambda module, args, logits: logits + bias)
    text = (ROOT / "eval/tasks/tiny_end_of_turn.yaml").read_text().replace("!function ", "")
    arguments = ("Say hello.", yaml.safe_load(text)["generation_kwargs"])
    request = Instance("generate_until", {}, arguments, 0)
    answers = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu").generate_until([request], disable_tqdm=True)
    assert chat_task.score_end({}, answers) == {"ended": int(ends)}


def test_the_byte_that_marks_a_cut_answer_is_llama_3_s_too(hermes_llama):
    import chat_task
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(hermes_llama).decode([188]) == chat_task.CUT


def test_lm_eval_gets_the_template_and_vllm_the_suite_s_length_and_seed_and_the_user_s_arguments(tmp_path):
    suite, forms = load("paper"), [(4, True, True), (4, False, True), (4, True, False)]
    argv, plain, one_turn = (
        command(tmp_path, tmp_path, suite, Protocol.of(*form), ["piqa"], "vllm", "tensor_parallel_size=8")
        for form in forms
    )
    arguments = argv[argv.index("--model_args") + 1]
    assert arguments == f"pretrained={tmp_path},dtype=bfloat16,max_model_len=8192,seed=42,tensor_parallel_size=8"
    assert argv[:4] == ["lm_eval", "run", "--model", "vllm"] and "--device" not in argv and "--log_samples" in argv
    assert "--apply_chat_template" in argv and "--fewshot_as_multiturn" not in argv
    assert argv[argv.index("--seed") + 1] == "42,42,42,1234"
    assert "--apply_chat_template" not in plain and "--fewshot_as_multiturn" not in plain
    assert "--apply_chat_template --fewshot_as_multiturn false" in " ".join(one_turn)
    outputs = {words[words.index("--output_path") + 1] for words in (argv, plain, one_turn)}
    assert outputs == {f"{tmp_path}/{name}" for name in ("4_shot", "4_shot_plain", "4_shot_one_turn")}
    with pytest.raises(ValueError, match="--model-args add_bos_token: `hermes3 eval` sets it"):
        model_args(suite, "vllm", "add_bos_token=True")


def tok_encode(tokenizer, text: str) -> list[int]:
    """What lm-eval makes of a text: its own function, without the model around it."""
    from lm_eval.models.huggingface import HFLM

    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    around = SimpleNamespace(tokenizer=tokenizer, add_bos_token=None, prefix_token_id=prefix)
    return HFLM.tok_encode(around, text)


@pytest.fixture
def double(base, tmp_path):
    """Copies of the base model: one's template writes BOS twice, the other's configuration does not name BOS."""
    for name, file, old, new in [
        ("template", "chat_template.jinja", "{{- bos_token -}}", "{{- bos_token + bos_token -}}"),
        ("config", "tokenizer_config.json", '"bos_token": "<|begin_of_text|>",', '"extra_special_tokens": [],'),
    ]:
        shutil.copytree(base, tmp_path / name)
        text = (tmp_path / name / file).read_text()
        (tmp_path / name / file).write_text(text.replace(old, new))
        assert (tmp_path / name / file).read_text() != text
    template = tmp_path / "config/chat_template.jinja"  # it writes BOS by name
    template.write_text(template.read_text().replace("{{- bos_token -}}", '{{- "<|begin_of_text|>" -}}'))
    return tmp_path


@pytest.mark.parametrize(("name", "count"), [("base", 1), ("template", 2), ("config", 2)])
def test_two_bos_are_refused_where_lm_eval_would_give_them(name, count, base, double):
    from transformers import AutoTokenizer

    folder = base if name == "base" else double / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
    ids = tok_encode(tokenizer, text)
    bos = tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    assert ids.count(bos) == count and ids[0] == bos
    if count == 1:
        assert prompt_start(folder) == {"token": "<|begin_of_text|>", "count": 1}
    else:
        with pytest.raises(ValueError, match="two <|begin_of_text|>; .*chat_template.jinja"):
            prompt_start(folder)


def test_a_failed_run_is_an_error_and_a_long_one_says_how_far_it_is(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(run, "TICK", 0.05)
    with pytest.raises(ValueError, match="lm_eval ended with 3 on model"):
        run._lm_eval(["sh", "-c", "sleep 0.2; exit 3"], "model", tmp_path)
    assert "0 min: 0 answers, 0 per minute" in capfd.readouterr().out
    run._lm_eval(["true"], "model", tmp_path)
