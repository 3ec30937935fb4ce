"""A base model from nothing: a byte-level BPE tokenizer and a small Llama with random weights, both deterministic.

It has the shape of Llama 3.1 (its special tokens in their order, its pre-tokenizer, rotary base, grouped queries,
untied embeddings), so that everything after it runs the code that the 8B, 70B and 405B run.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from hermes3.files import new_folder

MAX_VOCAB_SIZE = 4096  # a small corpus may yield fewer
# Llama 3.1's named special tokens by their place among the 256; the others are numbered reserved ones
NAMED = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id", 7: "end_header_id"}
NAMED |= {8: "eom_id", 9: "eot_id", 10: "python_tag"}
N_SPECIAL = 256
# The pre-tokenizer pattern of Llama 3 (a constant of its tokenizer.json)
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def special_tokens() -> list[str]:
    """The 256 special tokens of Llama 3.1, by id: `<|reserved_special_token_N|>` where it has no name of its own."""
    reserved = itertools.count()
    names = [NAMED.get(i) or f"reserved_special_token_{next(reserved)}" for i in range(N_SPECIAL)]
    return [f"<|{name}|>" for name in names]


def build(out: Path, corpus: list[Path], seed: int = 0) -> tuple[int, int]:
    """Write the model folder `out`; return its numbers of parameters and of vocabulary entries.

    `corpus`: files of conversations (jsonl) or plain text.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with new_folder(out, "tiny_base") as tmp:
        vocab_size = write_tokenizer(tmp, corpus)
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=160,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            tie_word_embeddings=False,
            bos_token_id=vocab_size - N_SPECIAL,
            eos_token_id=vocab_size - N_SPECIAL + 1,
            dtype="float32",
        )
        model = LlamaForCausalLM(config)
        model.save_pretrained(tmp)
    return model.num_parameters(), vocab_size


def _texts(corpus: list[Path]) -> Iterator[str]:
    yield " ".join(map(str, range(1000)))  # Llama 3's vocabulary, too, has every number of up to three digits
    for path in corpus:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if path.suffix != ".jsonl":
                    yield " " + line.strip()
                    continue
                row = json.loads(line)
                for message in row["messages"]:
                    yield message["content"]
                    for call in message.get("tool_calls", []):
                        yield json.dumps(call["function"], ensure_ascii=False)
                if row.get("tools"):
                    yield json.dumps(row["tools"], ensure_ascii=False)


def write_tokenizer(out: Path, corpus: list[Path]) -> int:
    """Learn a vocabulary from the files of `corpus` and write it to folder `out`; its number of entries."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if not corpus:
        raise ValueError("no corpus to learn a vocabulary from; write one with data_mixes/samples/generate.py")
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCAB_SIZE - N_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(corpus), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special_tokens()])
    bos = special_tokens()[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=special_tokens()[1],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    ).save_pretrained(out)
    return tokenizer.get_vocab_size()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("corpus", type=Path, nargs="+", help="text, jsonl of conversations, or a folder of jsonl files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    files = [file for path in options.corpus for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    parameters, vocab_size = build(options.out, files, options.seed)
    print(f"{options.out}: {parameters:,} parameters, {vocab_size:,} vocabulary entries")
