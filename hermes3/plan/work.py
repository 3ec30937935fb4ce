"""What one GPU computes at once: the tokens of a micro-batch, and the activations that a Llama keeps for them.

Activations are counted from what each operation saves for its backward pass, in transformers' Llama and in Liger's
kernels; tests/test_plan_memory.py holds the counts to torch's own memory tracker.
"""

from dataclasses import dataclass
from typing import Any

from hermes3.plan.shapes import Shape

LORA_LINEARS = 7
PLANNED_OPTIMIZERS = (None, "adamw_torch", "adamw_torch_fused", "rmsprop")


@dataclass(frozen=True)
class Work:
    """`tokens`: of one forward pass on one GPU; a DPO pair is two sequences. `width`: bytes of an activation."""

    tokens: int
    width: int = 2
    checkpointing: bool = True
    liger_norm: bool = False
    liger_glu: bool = False
    fused_loss: bool = False  # Liger's fused linear cross-entropy
    preference: bool = False  # the loss is DPO's
    rank: int = 0  # LoRA's; 0: every parameter is trained
    dropout: bool = False  # LoRA's
    accumulation: int = 1  # micro-batches a step
    moments: int = 2  # fp32 numbers that the optimizer keeps a parameter: Adam 2, RMSProp 1

    def trained(self, shape: Shape) -> int:
        """Parameters with a gradient."""
        return shape.lora(self.rank) if self.rank else shape.parameters

    def layer_input(self, shape: Shape) -> int:
        """Bytes of what checkpointing keeps of a decoder layer: the hidden states that enter it."""
        return self.tokens * shape.hidden * self.width

    def layer(self, shape: Shape) -> int:
        """Bytes that one decoder layer saves for its backward pass, its input apart."""
        h, kv, i, w = shape.hidden, shape.kv, shape.intermediate, self.width
        norms = 0 if self.liger_norm else 2 * 4 * h + (2 * w * h if w < 4 and not self.rank else 0)  # fp32, normalised
        second = w * h if self.liger_norm else 0  # Liger saves the norm's input instead; the first is the layer's own
        attention = 2 * w * h + 2 * w * kv + 4 * shape.heads  # q and the output, k and v, log of the sums
        mlp = (2 if self.liger_glu else 3) * w * i  # gate, up, and silu(gate)
        return self.tokens * (norms + second + attention + mlp + self._linear_inputs(shape))

    def _linear_inputs(self, shape: Shape) -> int:
        """Bytes a token of what the seven linears keep to compute their weights' gradients."""
        inner = LORA_LINEARS * self.rank * self.width  # between an adapter's two matrices
        if not self.dropout:
            return self.width * (2 * shape.hidden + shape.intermediate) + inner  # after each norm, and the product
        # a frozen matrix needs no input, but each adapter keeps its own dropped-out copy, and a mask of one byte
        return sum(inputs for inputs, _ in shape.linears) * (self.width + 1) + inner

    def layer_backward(self, shape: Shape) -> int:
        """Bytes of gradients that are alive with a layer's activations, at the peak: in the MLP."""
        h, i, w = shape.hidden, shape.intermediate, self.width
        flowing = (h + i if self.liger_glu else 2 * h + 2 * i) * w * self.tokens
        return flowing + (0 if self.rank else shape.largest_linear * w)  # one matrix' gradient

    def loss(self, shape: Shape) -> int:
        """Bytes at the loss' peak, the last hidden states and their gradient included.

        Liger goes through the tokens in chunks, but holds the output matrix' gradient, a chunk's share of it, and that
        in fp32 (liger_kernel/ops/fused_linear_cross_entropy.py). Unfused: three fp32 copies of the logits.
        """
        hidden, v, w = 3 * self.layer_input(shape), shape.vocab, self.width
        if self.preference:  # TRL: logits, their log-softmax a row, gradients of both
            return hidden + 4 * w * self.tokens * v
        if not self.fused_loss:
            return hidden + 12 * self.tokens * v
        chunks = -(-v // shape.hidden)
        chunk = 1 << (-(-self.tokens // chunks) - 1).bit_length()  # the next power of two
        matrix = 0 if self.rank else (2 * w + 4) * shape.embedding
        return hidden + chunk * v * w + matrix


def work_of(recipe: dict[str, Any]) -> tuple[Work, list[str]]:
    """The recipe's micro-batch, and what had to be assumed of it."""
    warnings = []
    micro = recipe.get("micro_batch_size") or 1
    preference = recipe.get("rl") == "dpo"
    tokens = recipe["sequence_len"] * micro * (2 if preference else 1)
    if preference:
        warnings.append(f"memory is for pairs at their longest, {tokens:,} tokens a micro-batch")
    if recipe.get("optimizer") not in PLANNED_OPTIMIZERS:
        warnings.append(
            f"optimizer {recipe['optimizer']}: planned as torch's Adam, two moments in the weights' precision; "
            "a quantized one takes less"
        )
    work = Work(
        tokens=tokens,
        width=2 if recipe.get("bf16") or recipe.get("fp16") else 4,
        checkpointing=bool(recipe.get("gradient_checkpointing")),
        liger_norm=bool(recipe.get("liger_rms_norm")),
        liger_glu=bool(recipe.get("liger_glu_activation")),
        fused_loss=bool(recipe.get("liger_fused_linear_cross_entropy")),
        preference=preference,
        rank=recipe.get("lora_r") or 0 if recipe.get("adapter") else 0,
        dropout=bool(recipe.get("adapter") and recipe.get("lora_dropout")),
        moments=1 if recipe.get("optimizer") == "rmsprop" else 2,
    )
    return work, warnings
