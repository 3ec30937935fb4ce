"""The chat format: wire constants, template, tokenizer, and rendering with loss labels."""
