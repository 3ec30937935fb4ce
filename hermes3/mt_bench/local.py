"""A model of a folder, answering through transformers: for small models, one conversation at a time."""

from pathlib import Path

from hermes3.model_folder import check_model
from hermes3.mt_bench.endpoint import Reply


class LocalModel:
    """`folder` holds a whole model with a chat template; it runs on the GPU where there is one."""

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        check_model(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def chat(self, messages: list[dict[str, str]], temperature: float, max_tokens: int, seed: int) -> Reply:
        """The model's next message; `temperature` 0 is greedy."""
        import torch

        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        # 0 and 1 switch off what a model's generation_config.json may set
        sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0} if temperature else {}
        torch.manual_seed(seed)
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, max_new_tokens=max_tokens, **(sampling or {"do_sample": False}))[0]
        new = tokens[inputs["input_ids"].shape[1] :]
        ended = self.tokenizer.eos_token_id in new.tolist()
        return Reply(self.tokenizer.decode(new, skip_special_tokens=True).strip(), not ended)
