"""A Llama's shape, and what one GPU computes of it at once: parameters and activations in closed form, without torch.
Activations are what each operation saves for its backward pass, in transformers' Llama and in Liger's kernels."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermes3.files import UserError, read_json, read_yaml

# Folders and Hub ids that have the shape of their Llama 3.1: Meta's own, Nous' Hermes 3, copies of either, and ours
LLAMA = r"(?:meta-|hermes-3-)?llama-3\.1-(8b|70b|405b)(?:-(?:base|instruct|fp8))*"
NAMED = re.compile(rf"(?:^|/)(?:{LLAMA}|outputs/(8b|70b|405b))(?=/|$)", re.IGNORECASE)
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION, HIDDEN_STATES = "attention", "hidden_states"
PLANNED_OPTIMIZERS = (None, "adamw_torch", "adamw_torch_fused", "rmsprop")
SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class Shape:
    """The sizes of one Llama; counts are of parameters."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of each of LINEARS."""
        h, i, (q, kv) = self.hidden, self.intermediate, (n * self.head_dim for n in (self.heads, self.kv_heads))
        return [(h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h)]

    @property
    def largest_linear(self) -> int:
        return max(i * o for i, o in self.linears)

    @property
    def layer(self) -> int:
        """One decoder layer: seven linears and two norms."""
        return sum(i * o for i, o in self.linears) + 2 * self.hidden

    @property
    def embedding(self) -> int:
        """The token embedding; the output matrix has as many."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.hidden + self.embedding * (1 if self.tied else 2)

    @property
    def multiplied(self) -> int:
        """Parameters that a token is multiplied with: all but the norms' and the input embedding's."""
        return self.layers * (self.layer - 2 * self.hidden) + self.embedding

    def lora(self, rank: int) -> int:
        """Parameters of an adapter on all seven linears."""
        return self.layers * sum(rank * (i + o) for i, o in self.linears)


def shape_of(path: Path, recipe: dict[str, Any]) -> Shape:
    """The shape of the recipe's base model: its folder's config.json, or Llama 3.1's by its name, built or not.
    `UserError` for any other name: a size alone says nothing of a model's shape."""
    base = str(recipe.get("base_model") or "")
    if (Path(base) / "config.json").is_file():
        return read_config(Path(base) / "config.json")
    if matches := list(NAMED.finditer(Path(base).as_posix())):
        size = matches[-1][1] or matches[-1][2]
        return next(shape for name, shape in PUBLISHED.items() if name.lower().endswith(f"-{size.lower()}"))
    wrong = f"{base} has no config.json here and is none of {', '.join(PUBLISHED)}, so its shape is not known"
    raise UserError(f"{path}: base_model: {wrong}; make the folder, or its config.json alone")


def read_config(config: Path) -> Shape:
    """The shape in a Llama's config.json. `UserError` for another kind of model, or a size that is missing."""
    fields = read_json(config, "model_type")
    if fields["model_type"] != "llama":
        raise UserError(f"{config}: model_type: {fields['model_type']} is not planned for, only llama is")
    if wrong := [key for key in SIZES if not isinstance(fields.get(key), int)]:
        raise UserError(f"{config}: {wrong[0]} is missing or no number; copy the model's own config.json")
    return _shape(str(config.parent), fields)


def _shape(name: str, config: dict[str, Any]) -> Shape:
    layers, hidden, intermediate, heads, vocab = (config[key] for key in SIZES)
    kv_heads, head_dim = config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // heads
    tied = bool(config.get("tie_word_embeddings"))
    return Shape(name, layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, tied)


# of the base models, by Hub id
PUBLISHED = {name: _shape(name, config) for name, config in read_yaml(Path(__file__).with_name("shapes.yml")).items()}


@dataclass(frozen=True)
class Work:
    """`tokens`: of one forward pass on one GPU; a DPO pair is two sequences. `width`: bytes per activation."""

    tokens: int
    width: int = 2
    checkpointing: bool = True
    offloaded: bool = False  # the layers' inputs wait on the host (activation_offloading: hidden_states)
    saved: tuple[str, ...] = ()  # what selective checkpointing keeps: attention, or linears by their place in a layer
    liger_norm: bool = False
    liger_glu: bool = False
    fused_loss: bool = False  # Liger's fused linear cross-entropy
    preference: bool = False  # the loss is DPO's
    rank: int = 0  # LoRA's; 0: every parameter is trained
    dropout: bool = False  # LoRA's
    accumulation: int = 1  # micro-batches per step
    moments: int = 2  # fp32 numbers that the optimizer keeps per parameter: Adam 2, RMSProp 1

    def trained(self, shape: Shape) -> int:
        """Parameters with a gradient."""
        return shape.lora(self.rank) if self.rank else shape.parameters

    def layer_input(self, shape: Shape) -> int:
        """Bytes of what checkpointing keeps of a decoder layer: the hidden states that enter it."""
        return self.tokens * shape.hidden * self.width

    def selected(self, shape: Shape) -> int:
        """Bytes per layer that selective checkpointing keeps: attention's output and sums, and outputs of linears."""
        kept = {name: self.width * outputs for name, (_, outputs) in zip(LINEARS, shape.linears, strict=True)}
        kept[ATTENTION] = kept["q_proj"] + 4 * shape.heads
        return self.tokens * sum(kept[one] for one in self.saved)

    def layer(self, shape: Shape) -> int:
        """Bytes that one decoder layer saves for its backward pass, its input apart."""
        h, kv, i, w = shape.hidden, shape.kv_heads * shape.head_dim, shape.intermediate, self.width
        norms = 2 * 4 * h + (2 * w * h if w < 4 and not self.rank else 0)  # fp32, normalised
        if self.liger_norm:
            norms = w * h  # Liger saves the second norm's input instead; the first is the layer's own
        attention = 2 * w * h + 2 * w * kv + 4 * shape.heads  # q and the output, k and v, log of the sums
        mlp = (2 if self.liger_glu else 3) * w * i  # gate, up, and silu(gate)
        linears = w * (2 * h + i)  # inputs of the seven: after each norm, and the MLP's product
        if self.dropout:  # a frozen matrix needs none, but each adapter a dropped-out copy, and a mask of one byte
            linears = sum(inputs for inputs, _ in shape.linears) * (w + 1)
        linears += len(LINEARS) * self.rank * w  # between an adapter's two matrices
        return self.tokens * (norms + attention + mlp + linears)

    def layer_backward(self, shape: Shape) -> int:
        """Bytes of gradients that are alive with a layer's activations, at the peak: in the MLP."""
        h, i, w = shape.hidden, shape.intermediate, self.width
        flowing = (h + i if self.liger_glu else 2 * h + 2 * i) * w * self.tokens
        return flowing + (0 if self.rank else shape.largest_linear * w)  # one matrix' gradient

    def loss(self, shape: Shape) -> int:
        """Bytes at the loss' peak, with the last hidden states and their gradient."""
        hidden, v, w = 3 * self.layer_input(shape), shape.vocab, self.width
        if self.preference or not self.fused_loss:
            # TRL: logits, their log-softmax of one row, gradients of both; SFT: three fp32 copies of the logits
            return hidden + (4 * w if self.preference else 12) * self.tokens * v
        # Liger goes through the tokens in chunks, but holds the output matrix' gradient, a chunk's share of it, and
        # that in fp32 (liger_kernel/ops/fused_linear_cross_entropy.py)
        chunks = -(-v // shape.hidden)
        chunk = 1 << (-(-self.tokens // chunks) - 1).bit_length()  # the next power of two
        matrix = 0 if self.rank else (2 * w + 4) * shape.embedding
        return hidden + chunk * v * w + matrix


def work_of(recipe: dict[str, Any]) -> tuple[Work, list[str]]:
    """The recipe's micro-batch, and what had to be assumed of it."""
    warnings = []
    preference, optimizer = recipe.get("rl") == "dpo", recipe.get("optimizer")
    tokens = recipe["sequence_len"] * (recipe.get("micro_batch_size") or 1) * (2 if preference else 1)
    if preference:
        warnings.append(f"memory is for pairs at their longest, {tokens:,} tokens per micro-batch")
    if optimizer not in PLANNED_OPTIMIZERS:
        moments = "planned as torch's Adam, two moments in the weights' precision; a quantized one takes less"
        warnings.append(f"optimizer {optimizer}: {moments}")
    selective = recipe.get("selective_checkpointing") or {"save": []}
    selective = {"save": [ATTENTION]} | (selective if isinstance(selective, dict) else {})
    kept = [*selective["save"], *(selective.get("save_modules") or [])]
    saved = tuple(name for name in (ATTENTION, *LINEARS) if any(str(one).endswith(name) for one in kept))
    if len(saved) < len(kept) or selective.keys() - {"save", "save_modules"}:
        warnings.append(f"selective_checkpointing: planned is what {', '.join(saved)} keep; all else of it is not")
    offloading = recipe.get("activation_offloading")
    if offloading and offloading != HIDDEN_STATES:
        warnings.append(f"activation_offloading: {offloading} is planned as none; {HIDDEN_STATES} is planned for")
    work = Work(
        tokens=tokens,
        width=2 if recipe.get("bf16") or recipe.get("fp16") else 4,
        checkpointing=bool(recipe.get("gradient_checkpointing")),
        offloaded=offloading == HIDDEN_STATES,
        saved=saved,
        liger_norm=bool(recipe.get("liger_rms_norm")),
        liger_glu=bool(recipe.get("liger_glu_activation")),
        fused_loss=bool(recipe.get("liger_fused_linear_cross_entropy")),
        preference=preference,
        rank=recipe.get("lora_r") or 0 if recipe.get("adapter") else 0,
        dropout=bool(recipe.get("adapter") and recipe.get("lora_dropout")),
        moments=1 if optimizer == "rmsprop" else 2,
    )
    return work, warnings
