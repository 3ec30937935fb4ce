"""FP8 weights for serving, as the paper evaluated its 405B: a call of llm-compressor."""

import shutil
from pathlib import Path

from hermes3.files import UserError, new_folder
from hermes3.model_folder import check_model

# Paper, Section 4: weights rounded to nearest with one scale per output channel, activations with one scale per token,
# computed as they pass. llm-compressor's name for that; it needs no calibration data.
SCHEME = "FP8_DYNAMIC"
IGNORED = ["lm_head"]  # ours: the output projection stays bf16, as in vLLM's own FP8 examples


def quantize(model: Path, out: Path) -> int:
    """Write `model` to `out` with FP8 weights in compressed-tensors form, which vLLM loads; returns bytes of weights.

    Needs the environment of requirements-quantize.txt and host memory for the bf16 model; no GPU. `UserError` for a
    folder that is not a whole model, an `out` that exists, or the wrong environment.
    """
    check_model(model)
    if out.exists():
        raise UserError(f"{out} exists; give a new folder, or delete it")
    try:
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier
    except ImportError as error:
        raise UserError(f"{error}; quantize in the environment of requirements-quantize.txt") from None
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto", trust_remote_code=False)
    oneshot(model=loaded, recipe=QuantizationModifier(targets="Linear", scheme=SCHEME, ignore=IGNORED))
    with new_folder(out, "hermes3 quantize") as folder:
        loaded.save_pretrained(folder, save_compressed=True)
        for file in [*model.glob("tokenizer*.json"), *model.glob("*.jinja")]:  # the same bytes
            shutil.copy2(file, folder / file.name)
    return sum(file.stat().st_size for file in out.glob("*.safetensors"))
