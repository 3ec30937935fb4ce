"""The Hermes tokenizer over Llama 3.1's true vocabulary, which the package llama-models carries."""

from pathlib import Path


def make(out: Path) -> Path:
    """Write Llama 3.1's tokenizer and, from it, the Hermes tokenizer; return the latter's folder.

    Names and ids of the 256 special tokens are those of Meta's Llama 3.1 release.
    """
    import llama_models.llama3
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    from hermes3.chat import tokenizer

    named = ["<|begin_of_text|>", "<|end_of_text|>", 0, 1, "<|finetune_right_pad_id|>", 2, "<|start_header_id|>"]
    named += ["<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", *range(3, 248)]
    special = [f"<|reserved_special_token_{name}|>" if isinstance(name, int) else name for name in named]
    ranks = Path(llama_models.llama3.__path__[0]) / "tokenizer.model"
    converted = TikTokenConverter(vocab_file=str(ranks), extra_special_tokens=special).converted()
    llama = PreTrainedTokenizerFast(tokenizer_object=converted, bos_token=special[0], eos_token=special[1])
    llama.save_pretrained(out / "llama")
    tokenizer.build(str(out / "llama"), out / "hermes")
    return out / "hermes"
