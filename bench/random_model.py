"""python -m bench.random_model OUT CONFIG.json DEVICE: random bf16 weights of a Llama, made there: 15 GB in 30 s."""

import json
import sys
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM


def write(out: Path, config: LlamaConfig, device: str) -> None:
    """As `save_pretrained` would, a file of 5 GB at a time."""
    config.dtype, config.architectures = torch.bfloat16, ["LlamaForCausalLM"]
    with torch.device("meta"):
        shapes = dict(LlamaForCausalLM(config).to(config.dtype).named_parameters())
    torch.manual_seed(0)
    split = split_torch_state_dict_into_shards(shapes, filename_pattern="model{suffix}.safetensors")
    for file, names in split.filename_to_tensors.items():
        tensors = {}
        for name in names:
            tensor = torch.empty(shapes[name].shape, device=device, dtype=config.dtype)
            tensors[name] = (tensor.fill_(1) if "norm" in name else tensor.normal_(0, config.initializer_range)).cpu()
        save_file(tensors, out / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (out / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config.save_pretrained(out)


if __name__ == "__main__":
    write(Path(sys.argv[1]), LlamaConfig(**json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))), sys.argv[3])
