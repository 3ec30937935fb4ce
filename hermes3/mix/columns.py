"""The columns of shards and of a mix's files."""

import pyarrow as pa

from hermes3.mix.spec import Spec

SIDES = ("chosen", "rejected")
REJECTS = pa.schema([(key, pa.string()) for key in ("id", "source", "stage", "reason", "detail")])
# a fourth column would break Axolotl's packing collator
TRAIN = pa.schema(
    [("input_ids", pa.list_(pa.int32())), ("attention_mask", pa.list_(pa.int8())), ("labels", pa.list_(pa.int32()))]
)
# of a shard: what is needed to choose among rows, without the rows themselves
SHORT = ("id", "source", "category", "n_tokens", "n_loss_tokens", "n_turns", "hash", "signature")


def schema(spec: Spec) -> pa.Schema:
    """Columns of a shard."""
    fields = [("id", pa.string()), ("source", pa.string()), ("category", pa.string())]
    fields += [
        ("n_tokens", pa.int32()),
        ("n_loss_tokens", pa.int32()),
        ("hash", pa.binary(32)),
        ("n_turns", pa.int32()),
    ]
    fields += [("messages", pa.string()), ("tools", pa.string())]
    if spec.kind == "sft":
        fields += [("input_ids", pa.list_(pa.int32())), ("loss", pa.list_(pa.bool_()))]
    else:
        fields += [(side, pa.string()) for side in (*SIDES, "prompt_text", *(f"{side}_text" for side in SIDES))]
    if spec.near_duplicates:
        fields.append(("signature", pa.binary(4 * spec.near_duplicates.permutations)))
    return pa.schema(fields)
