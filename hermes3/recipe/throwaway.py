"""What a recipe is tried on: a Llama of one layer, 16 wide, and a few rows of the shape that its datasets have."""

from pathlib import Path
from typing import Any

TEXT = "0 1 2"
# Two rows fill a sequence of the trial, so that packing has something to pack
SEQUENCE_LEN = 256
ROW_LEN = 120
ROWS = 4


def write_model(out: Path) -> None:
    """Write the model folder `out`: weights, config, and a Hermes tokenizer learnt from the numbers alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from data_mixes.samples import tiny_base
    from hermes3.chat import tokenizer

    llama = out.with_name("llama")
    llama.mkdir(parents=True)
    corpus = out.with_name("corpus.txt")
    corpus.write_text(TEXT + "\n", encoding="utf-8")
    vocab_size = tiny_base.write_tokenizer(llama, [corpus])
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        bos_token_id=vocab_size - tiny_base.N_SPECIAL,
        eos_token_id=vocab_size - tiny_base.N_SPECIAL + 1,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(llama)
    tokenizer.build(str(llama), out)


def write_rows(out: Path, recipe: dict[str, Any], entry: dict[str, Any]) -> None:
    """Write the folder `out` of parquet with rows that the entry of `datasets` can be loaded with."""
    from datasets import Dataset

    out.mkdir(parents=True)
    Dataset.from_list([_row(recipe, entry)] * ROWS).to_parquet(out / "train.parquet")


def _row(recipe: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    kind = entry.get("type")
    names = {"role": "role", "content": "content"} | (entry.get("message_property_mappings") or {})
    user, assistant = ({names["role"]: role, names["content"]: TEXT} for role in ("user", "assistant"))
    if recipe.get("rl"):
        if str(kind).startswith("chat_template"):
            context, chosen, rejected = (
                entry.get(f"field_{name}") or name for name in ("messages", "chosen", "rejected")
            )
            return {context: [user], chosen: assistant, rejected: assistant}
        return {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}
    if str(kind).startswith("chat_template"):
        return {entry.get("field_messages") or "messages": [user, assistant]}
    if kind == "completion":
        return {entry.get("field") or "text": TEXT * ROW_LEN}
    if kind:
        raise NotImplementedError(f"no rows of type {kind} are made for the trial")
    tokens = list(range(ROW_LEN))
    return {"input_ids": tokens, "attention_mask": [1] * ROW_LEN, "labels": tokens}
