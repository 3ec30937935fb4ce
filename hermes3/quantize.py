"""FP8 weights for serving, as the paper evaluated its 405B: a call of llm-compressor."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from hermes3.files import UserError, check_out, new_folder
from hermes3.model_folder import check_model


def quantize(
    model: Annotated[Path, typer.Argument(help="folder of a whole model")],
    out: Annotated[Path, typer.Argument(help="folder to write: the model with FP8 weights, for vLLM")],
) -> int:
    """Round MODEL's weights to FP8, as the paper did for its 405B. Needs requirements-quantize.txt, but no GPU.

    Example: hermes3 quantize outputs/8b/dpo/merged outputs/8b/fp8
    """
    check_model(model)
    check_out(out, "hermes3 quantize")
    try:
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier
    except ImportError as error:
        raise UserError(f"{error}; quantize in the environment of requirements-quantize.txt") from None
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto", trust_remote_code=False)
    # paper, Section 4: weights to nearest, one scale per output channel; activations one per token, as they pass
    # ours: the output projection stays bf16, as in vLLM's own FP8 examples
    oneshot(model=loaded, recipe=QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"]))
    with new_folder(out, "hermes3 quantize") as folder:
        loaded.save_pretrained(folder, save_compressed=True)
        for file in [*model.glob("tokenizer*.json"), *model.glob("*.jinja")]:  # the same bytes
            shutil.copy2(file, folder / file.name)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print(f"{out}: {size:,} bytes of weights")
    return size
