"""What a score depends on: the model's files, its template and BOS, the backend, the seed, the versions.

Results are reused and compared only where all of these are equal.
"""

import hashlib
import importlib.metadata
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hermes3.files import UserError, sha256

PACKAGES = ("lm_eval", "transformers", "torch", "vllm")
SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def setting_of(model: Path, backend: str, model_args: str, seed: int, limit: int | None) -> dict[str, Any]:
    """The setting as plain data, for `run.json`. `UserError` where prompts would begin with two BOS."""
    return {
        "model": str(model),
        "weights": fingerprint(model),
        "chat_template_sha": sha256(model / "chat_template.jinja"),  # as lm-eval writes it into its results
        "bos": prompt_start(model),
        "backend": backend,
        "model_args": model_args,
        "seed": seed,
        "limit": limit,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES if find_spec(name)},
    }


def digest(*parts: Any) -> str:
    """16 hex digits that change when any of `parts`, plain data, does."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(model: Path) -> str:
    """Changes when the model does: contents of its small files, size and time of its weights.

    Hashing 812 GB of weights takes ten minutes; like `make`, a file of the same size and time counts as the same.
    """
    parts = [(name, sha256(model / name)) for name in SMALL if (model / name).is_file()]
    stats = [(path.name, path.stat()) for path in sorted(model.glob("*.safetensors"))]
    parts += [(name, f"{stat.st_size} {stat.st_mtime_ns}") for name, stat in stats]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def prompt_start(model: Path) -> dict[str, Any]:
    """{"token": BOS or None, "count": how often a chat prompt begins with it}, encoded as lm-eval encodes it.

    lm-eval 0.4.11 lets the tokenizer add its special tokens unless the text begins with the token that `bos_token` (or
    else `eos_token`) names: `tok_encode` of lm_eval/models/huggingface.py and vllm_causallms.py. A tokenizer that adds
    a BOS which its configuration does not name gets two, and a template may write two. Every score would be wrong, a
    little. `UserError` then.
    """
    from tokenizers import Tokenizer
    from transformers.utils.chat_template_utils import render_jinja_template

    config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = {key: value for key, value in config.items() if key.endswith("_token") and value is not None}
    tokens = {key: value["content"] if isinstance(value, dict) else value for key, value in named.items()}
    template = (model / "chat_template.jinja").read_text(encoding="utf-8")
    conversation = [{"role": "user", "content": "x"}]
    text = render_jinja_template([conversation], chat_template=template, add_generation_prompt=True, **tokens)[0][0]
    prefix = tokens.get("bos_token") or tokens.get("eos_token")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    start = tokenizer.encode(text, add_special_tokens=not (prefix and text.startswith(prefix))).tokens[:2]
    if len(start) > 1 and start[0] == start[1]:
        raise UserError(
            f"{model}: prompts would begin with two {start[0]}; let either chat_template.jinja or tokenizer.json write "
            f"it, and bos_token of tokenizer_config.json (now {tokens.get('bos_token')}) name it"
        )
    bos = tokens.get("bos_token")
    return {"token": bos, "count": int(start[0] == bos)}


def own_tasks(folder: Path) -> tuple[set[str], str]:
    """The names of the tasks that are no part of lm-eval but of `folder`, and a hash of all that they consist of."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    names = {
        name
        for path in files
        if path.suffix in (".yaml", ".yml")
        for name in re.findall(r"^(?:task|group): *(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    return names, digest([(str(path), sha256(path)) for path in files])
