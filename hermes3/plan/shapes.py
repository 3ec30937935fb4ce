"""A Llama's shape and what follows from it: parameters by part, in closed form, without torch.

tests/test_plan.py builds LlamaForCausalLM on the meta device and compares the counts exactly.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hermes3.recipe.paper import paper_of

if TYPE_CHECKING:
    from transformers import LlamaConfig


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
    def kv(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the seven linear layers of a decoder layer: q, k, v, o, gate, up, down."""
        h, q = self.hidden, self.heads * self.head_dim
        return [
            (h, q),
            (h, self.kv),
            (h, self.kv),
            (q, h),
            (h, self.intermediate),
            (h, self.intermediate),
            (self.intermediate, h),
        ]

    @property
    def layer(self) -> int:
        """One decoder layer: seven linears and two norms."""
        return sum(i * o for i, o in self.linears) + 2 * self.hidden

    @property
    def largest_linear(self) -> int:
        """The largest matrix of a decoder layer."""
        return max(i * o for i, o in self.linears)

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
        return self.layers * sum(i * o for i, o in self.linears) + self.embedding

    def llama_config(self, **others: Any) -> "LlamaConfig":
        """The transformers configuration of this shape."""
        from transformers import LlamaConfig

        return LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab,
            tie_word_embeddings=self.tied,
            **others,
        )

    def lora(self, rank: int) -> int:
        """Parameters of an adapter on all seven linears: rank x (inputs + outputs) each."""
        return self.layers * sum(rank * (i + o) for i, o in self.linears)


@lru_cache
def published() -> dict[str, Shape]:
    """The base models' shapes by Hub id."""
    given = yaml.safe_load(Path(__file__).with_name("shapes.yml").read_text(encoding="utf-8"))
    return {name: Shape(name=name, **values) for name, values in given.items()}


def shape_of(path: Path, recipe: dict[str, Any]) -> Shape:
    """The shape of the recipe's base model: its folder's config.json, the size that its name says, or the paper's row.

    `ValueError` when none tells, or when the name says a size that is not published here.
    """
    base = str(recipe.get("base_model") or "")
    config = Path(base) / "config.json"
    if config.is_file():
        return read_config(config)
    if base in published():
        return published()[base]
    size = re.findall(r"(?<![a-z0-9.])([0-9.]+b)(?![a-z0-9])", base.lower())
    known = {name.rsplit("-", 1)[1].lower(): shape for name, shape in published().items()}
    if size and size[-1] in known:
        return known[size[-1]]
    paper = paper_of(path)
    if paper is not None and not size:
        return published()[paper.base]
    raise ValueError(
        f"{path}: base_model: {base} has no config.json here and is none of {', '.join(published())}; "
        "make the folder, or its config.json alone"
    )


def read_config(config: Path) -> Shape:
    """The shape in a Llama's config.json. `ValueError` for another kind of model."""
    given = json.loads(config.read_text(encoding="utf-8"))
    if given.get("model_type") != "llama":
        raise ValueError(f"{config}: model_type: {given.get('model_type')} is not planned for, only llama is")
    heads = given["num_attention_heads"]
    return Shape(
        name=str(config.parent),
        layers=given["num_hidden_layers"],
        hidden=given["hidden_size"],
        intermediate=given["intermediate_size"],
        heads=heads,
        kv_heads=given.get("num_key_value_heads") or heads,
        head_dim=given.get("head_dim") or given["hidden_size"] // heads,
        vocab=given["vocab_size"],
        tied=bool(given.get("tie_word_embeddings")),
    )
