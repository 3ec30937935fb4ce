"""Model folders that mean the same to transformers 4, which vLLM and llm-compressor still use, as to transformers 5.

transformers 5 writes the rotary embedding as `rope_parameters` and its tokenizer class as `TokenizersBackend`. Version
4 does not know the first and computes with a base of 10,000 where Llama 3.1 has 500,000, without a word; it refuses the
second. Both read the older names, so both names are written. Gone once the evaluation environment has transformers 5.
"""

import contextlib
import functools
import json
from pathlib import Path

from hermes3.files import write_text

NEWER_CLASS = "TokenizersBackend"
TOKENIZER_CLASS = "PreTrainedTokenizerFast"  # in transformers 5 another name of it


def mend(folder: Path) -> None:
    """Write the older names beside the newer ones into the configuration and tokenizer files that `folder` has."""
    config = _read(folder / "config.json")
    older = _older_names(config)
    if any(config.get(key) != value for key, value in older.items()):
        write_text(folder / "config.json", json.dumps(config | older, indent=2, sort_keys=True) + "\n")
    tokenizer = _read(folder / "tokenizer_config.json")
    if tokenizer.get("tokenizer_class") == NEWER_CLASS:
        tokenizer["tokenizer_class"] = TOKENIZER_CLASS
        write_text(folder / "tokenizer_config.json", json.dumps(tokenizer, indent=2, ensure_ascii=False) + "\n")


def check(folder: Path) -> None:
    """Refuse a folder that transformers 4 would compute wrongly with: `ValueError` names the key and the remedy."""
    config = _read(folder / "config.json")
    for key, value in _older_names(config).items():
        if config.get(key) != value:
            raise ValueError(
                f"{folder}/config.json: {key} is not {value} as in rope_parameters, which vLLM's transformers does not "
                f"read: it would compute with {config.get(key, 'its default')}; "
                f"write it with `python -m hermes3.portable {folder}`"
            )
    if _read(folder / "tokenizer_config.json").get("tokenizer_class") == NEWER_CLASS:
        raise ValueError(
            f"{folder}/tokenizer_config.json: tokenizer_class {NEWER_CLASS} is none of vLLM's transformers; "
            f"write another with `python -m hermes3.portable {folder}`"
        )


def save_portably() -> None:
    """Have everything that transformers saves in this process mean the same to both versions."""
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    for kind in (PretrainedConfig, PreTrainedTokenizerBase):
        if not hasattr(kind.save_pretrained, "__wrapped__"):
            kind.save_pretrained = _mended(kind.save_pretrained)


def _mended(save):
    @functools.wraps(save)
    def save_pretrained(self, save_directory, *args, **kwargs):
        saved = save(self, save_directory, *args, **kwargs)
        with contextlib.suppress(json.JSONDecodeError):  # another rank is writing the same file; it mends it after that
            mend(Path(save_directory))
        return saved

    return save_pretrained


def _older_names(config: dict) -> dict:
    """`rope_theta` and `rope_scaling` of version 4 for the `rope_parameters` of version 5; {} where there are none."""
    rope = config.get("rope_parameters")
    if not rope or "rope_theta" not in rope:
        return {}
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {"rope_theta": rope["rope_theta"]} | (
        {"rope_scaling": scaling} if scaling.get("rope_type", "default") != "default" else {}
    )


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


if __name__ == "__main__":
    import sys

    for argument in sys.argv[1:]:
        mend(Path(argument))
