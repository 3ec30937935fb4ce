"""transformers' own trainer of a Llama with a few hundred weights, for what needs no Axolotl."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

SIZE = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def tiny_trainer(folder: Path, rows: list[list[int]], **args) -> Trainer:
    """A batch is one row. A token 0 is padding."""
    args = {"per_device_train_batch_size": 1, "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 42} | args
    tensors = [torch.tensor(ids) for ids in rows]
    columns = [{"input_ids": ids, "labels": ids, "attention_mask": (ids != 0).long()} for ids in tensors]
    model = LlamaForCausalLM(LlamaConfig(**SIZE, pad_token_id=0))
    return Trainer(model, TrainingArguments(folder, **args), train_dataset=columns)
