"""`make quantize-check`: FP8 weights against the model they were made from, by logits, on a CPU.

Runs in the environment of requirements-quantize.txt, whose transformers is an older 5: so it also shows that a model
trained here is read rightly there. Prints JSON; exits 1 where the quantized model is another model.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__

from hermes3.quantize import quantize

KL_LIMIT = 0.05  # nats a token; e4m3 keeps 3 bits of mantissa, so a weight is off by up to 6 %


def compare(model: Path, rows: list[dict]) -> dict:
    """Quantize `model` and compare it on conversations: scheme, bytes, and how far the next-token distributions are."""
    with tempfile.TemporaryDirectory() as folder:
        fp8 = Path(folder) / "fp8"
        size = quantize(model, fp8)
        tokenizer = AutoTokenizer.from_pretrained(fp8)
        config = json.loads((fp8 / "config.json").read_text(encoding="utf-8"))["quantization_config"]
        (group,) = config["config_groups"].values()
        with safe_open(fp8 / "model.safetensors", framework="pt") as tensors:
            kinds = {name: str(tensors.get_tensor(name).dtype) for name in tensors.keys()}  # noqa: SIM118
        models = [
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=False).eval()
            for path in (model, fp8)
        ]
        kl, agree, tokens = 0.0, 0, 0
        for row in rows:
            text = tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            with torch.no_grad():  # each float32[n_tokens, vocab_size]
                before, after = (loaded(ids).logits[0].log_softmax(-1) for loaded in models)
            kl += float((before.exp() * (before - after)).sum())
            agree += int((before.argmax(-1) == after.argmax(-1)).sum())
            tokens += ids.shape[1]
    return {
        "transformers": __version__,
        "weights": {key: group["weights"][key] for key in ("num_bits", "type", "strategy", "dynamic")},
        "activations": {key: group["input_activations"][key] for key in ("num_bits", "type", "strategy", "dynamic")},
        "fp8_tensors": sum(kind == "torch.float8_e4m3fn" for kind in kinds.values()),
        "bytes": size,
        "bytes_before": sum(file.stat().st_size for file in model.glob("*.safetensors")),
        "tokens": tokens,
        "kl_nats_per_token": kl / tokens,
        "same_first_choice": agree / tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", default=Path("outputs/tiny/sft"))
    parser.add_argument("rows", type=Path, nargs="?", default=Path("outputs/tiny/data/train/tool_calls.jsonl"))
    arguments = parser.parse_args()
    with arguments.rows.open(encoding="utf-8") as lines:
        found = compare(arguments.model, [json.loads(line) for line, _ in zip(lines, range(20), strict=False)])
    print(json.dumps(found, indent=1))
    raise SystemExit(found["kl_nats_per_token"] > KL_LIMIT)


if __name__ == "__main__":
    main()
