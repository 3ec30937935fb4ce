"""How fast a mix is built, against its peers and the physical limit: `make bench`, or `python bench/mix.py --help`.

Part one, on the same real rows: raw gigatoken, tiktoken and tokenizers over the rendered text, our stage that
renders, tokenises and masks, `axolotl preprocess` with the same template, and the whole build with every stage on. Part
two, on generated rows (bench/generate.py): the full size, a tenth and a hundredth: time of each stage, peak memory.
Figures are printed and appended to docs/benchmarks.md.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from bench.generate import generate
from bench.llama_tokenizer import make
from hermes3.mix.adapt import ADAPTERS, Example

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data"
REPEATS = 3
FILES = {
    "gpteacher_roleplay.json": "instruction",
    "gpteacher_codegen.json": "instruction",
    "gsm8k_train.jsonl": "question_answer",
    "glaive_toolcall.json": "sharegpt",
}


def main() -> None:
    """Run both parts and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=float, default=390e6, help="full size of part two (390e6)")
    parser.add_argument("--copies", type=int, default=4, help="times that the real rows are used in part one (4)")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"), help="folder for data and mixes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    hermes = args.out / "tokenizer/hermes"
    if not hermes.is_dir():
        make(args.out / "tokenizer")
    tables = []
    if DATA.is_dir():
        tables.append(same_rows(args.out, hermes, args.copies))
    else:
        print(f"no real rows in {DATA}: part one is left out")
    tables.append(full_size(args.out, hermes, int(args.tokens)))
    for table in tables:
        Console(width=120).print(table)
    record(tables)


def real_rows(copies: int) -> list[Example]:
    """The real conversations, `copies` times, each time with another last word, so that nothing is a copy."""
    rows = []
    for name, adapter in FILES.items():
        text = (DATA / "train" / name).read_text(encoding="utf-8")
        raw = json.loads(text) if name.endswith(".json") else map(json.loads, text.splitlines())
        rows += [ADAPTERS[adapter](one) for one in raw]
    for (
        row
    ) in rows:  # what the last copy says the first does not: near-duplicate removal stays at work, and empty-handed
        row["messages"] = [message for message in row["messages"] if message["role"] != "system"]
    every = []
    for copy in range(copies):
        for row in rows:
            last = row["messages"][-1]
            every.append(row | {"messages": [*row["messages"][:-1], last | {"content": f"{last['content']} {copy}"}]})
    return every


def same_rows(out: Path, hermes: Path, copies: int) -> Table:
    """Tokens a second of each way, on the same real rows."""
    from hermes3.chat.render import Renderer, turns

    rows = real_rows(copies)
    pairs = [(row["messages"], row["tools"]) for row in rows]
    texts = [f"{turn.role}\n{turn.text}" for messages, tools in pairs for turn in turns(messages, tools)]
    renderer = Renderer(hermes)
    n_tokens = sum(len(one.input_ids) for one in renderer.render(pairs))
    tiktoken, gigatoken = llama_tiktoken(hermes), renderer.encode.gigatoken
    blocks = [texts[i : i + 1000] for i in range(0, len(texts), 1000)]

    def in_threads(work: Callable[[list[str]], Any]) -> float:
        with ThreadPoolExecutor(2) as pool:  # encode_ordinary_batch makes one task per text; fewer tasks cost less
            return best(lambda: list(pool.map(work, blocks)))

    def tokenizers() -> None:
        renderer.encode.tokenizer.encode_batch_fast(texts, add_special_tokens=False)

    lines = [
        ("gigatoken, text only, 2 threads", in_threads(lambda block: gigatoken.encode_batch(block, parallel=False))),
        ("tiktoken, text only, 2 threads", in_threads(lambda block: [tiktoken.encode_ordinary(one) for one in block])),
        ("tokenizers, text only, 2 threads", best(tokenizers)),
        ("ours: render, tokenise, mask, 2 processes", best(lambda: in_processes(hermes, pairs))),
        ("axolotl preprocess, 2 processes", preprocess(out, hermes, rows)),
        ("ours: the whole build, every stage on", whole_build(out, hermes, rows)),
    ]
    slowest = dict(lines)["axolotl preprocess, 2 processes"]
    table = Table(title=f"The same {len(rows):,} real conversations, {n_tokens:,} tokens; best of {REPEATS}")
    for name in ("", "seconds", "M tokens/s", "x axolotl preprocess"):
        table.add_column(name, justify="left" if not name else "right")
    for name, seconds in lines:
        table.add_row(name, f"{seconds:.1f}", f"{n_tokens / seconds / 1e6:.2f}", f"{slowest / seconds:.1f}")
    return table


def llama_tiktoken(hermes: Path) -> Any:
    """tiktoken with Llama 3.1's ranks, which the package llama-models carries, and the pattern of `hermes`."""
    import llama_models.llama3
    from tiktoken import Encoding
    from tiktoken.load import load_tiktoken_bpe

    ranks = load_tiktoken_bpe(str(Path(llama_models.llama3.__path__[0]) / "tokenizer.model"))
    steps = json.loads((hermes / "tokenizer.json").read_text(encoding="utf-8"))["pre_tokenizer"]["pretokenizers"]
    return Encoding("llama", pat_str=steps[0]["pattern"]["Regex"], mergeable_ranks=ranks, special_tokens={})


def best(work: Callable[[], Any]) -> float:
    """Seconds of the quickest of `REPEATS` runs: what the machine can do when nothing else runs on it."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        taken = work()
        times.append(taken if isinstance(taken, float) else time.perf_counter() - start)
    return min(times)


def in_processes(hermes: Path, pairs: list[Any]) -> float:
    """Seconds of the stage in two processes, each of which has half of the rows before the clock starts."""
    context = multiprocessing.get_context("fork")
    ready, go = context.Barrier(3), context.Barrier(3)

    def work(half: list[Any]) -> None:
        from hermes3.chat.render import Renderer, turns

        renderer = Renderer(hermes)
        assert renderer.encode.gigatoken
        ready.wait()
        go.wait()
        for i in range(0, len(half), 500):
            renderer.batch([list(turns(*pair)) for pair in half[i : i + 500]])

    processes = [context.Process(target=work, args=(pairs[i::2],)) for i in range(2)]
    for process in processes:
        process.start()
    ready.wait()
    go.wait()
    start = time.perf_counter()
    for process in processes:
        process.join()
    return time.perf_counter() - start


def preprocess(out: Path, hermes: Path, rows: list[Example]) -> float:
    """Seconds of `axolotl preprocess` on the rows, less those on ten of them, which is its start."""
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256}
    (hermes / "config.json").write_text(json.dumps(llama))  # Axolotl asks what kind of model it is
    times = []
    for name, some in (("ten", rows[:10]), ("all", rows)):
        folder = out / f"axolotl_{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"messages": plain(row)}, ensure_ascii=False) + "\n" for row in some)
        recipe = {
            "base_model": str(hermes),
            "datasets": [{"path": str(folder / "rows.jsonl"), "type": "chat_template", "split": "train"}],
            "chat_template": "tokenizer_default",
            "dataset_prepared_path": str(folder / "prepared"),
            "dataset_num_proc": 2,
            "sequence_len": 8192,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "num_epochs": 1,
            "learning_rate": 1e-5,
            "optimizer": "adamw_torch",
            "output_dir": str(folder / "out"),
        }
        (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-m", "axolotl.cli.preprocess", str(folder / "recipe.yml")]
        environment = os.environ | {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - start)
        if done.returncode:
            raise ValueError(f"axolotl preprocess failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return times[1] - times[0]


def plain(row: Example) -> list[dict[str, str]]:
    """The rendered turns as text; a tool's turn as the user's, since the template would render it once more."""
    from hermes3.chat.render import turns

    said = turns(row["messages"], row["tools"])
    return [{"role": turn.role.replace("tool", "user"), "content": turn.text} for turn in said]


def whole_build(out: Path, hermes: Path, rows: list[Example]) -> float:
    """Seconds of the build with filters, near-duplicates, decontamination and a card, less its start."""
    from hermes3.mix.build import build

    folder = out / "real"
    folder.mkdir(exist_ok=True)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    source = {"name": "rows", "path": "rows.jsonl", "adapter": "messages", "licence": "several"}
    spec = {"name": "real", "kind": "sft", "tokenizer": str(hermes), "sequence_len": 8192, "seed": 42}
    spec["near_duplicates"] = {"threshold": 0.99}  # the copies of a row differ by a word
    spec["decontaminate"] = {"against": [{"path": str((DATA / "eval/gsm8k_test.jsonl").absolute())}]}
    spec["categories"] = {"general_instructions": {"sources": [source]}}
    (folder / "real.yml").write_text(yaml.safe_dump(spec))

    def work() -> float:
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        return sum(build(folder / "real.yml", folder / "mix", folder, workers=2, quiet=True).wall.values())

    return best(work)


def full_size(out: Path, hermes: Path, tokens: int) -> Table:
    """Time by stage and peak memory of the full size, a tenth and a hundredth of it."""
    from hermes3.mix.build import build

    mixes, memories, sizes = [], [], []
    for size in (tokens // 100, tokens // 10, tokens):
        folder = out / f"generated_{size}"
        if not (folder / "bench.yml").is_file():
            generate(size, folder, hermes)
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        fresh = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))  # part one leaves memory in this one
        with PeakMemory() as memory, fresh as process:
            mixes.append(process.submit(build, folder / "bench.yml", folder / "mix", folder, workers=2).result())
        shutil.rmtree(folder / ".cache")
        memories.append(memory)
        sizes.append(sum(file.stat().st_size for file in folder.glob("*.jsonl")))
    totals = [mix.manifest["total"] for mix in mixes]
    table = Table(title="Generated conversations, every stage on, two processes")
    for name in ("", *(f"{total['tokens']:,} tokens" for total in totals), "ratio of the last two"):
        table.add_column(name, justify="left" if not name else "right")

    def line(name: str, values: list[float], form: str) -> None:
        ratio = f"{values[-1] / values[-2]:.1f}" if values[-2] else ""
        table.add_row(name, *(format(value, form) for value in values), ratio)

    line("rows read", [sum(source["rows_read"] for source in mix.manifest["sources"]) for mix in mixes], ",")
    line("rows kept", [total["rows"] for total in totals], ",")
    line("input, MB", [size / 1e6 for size in sizes], ",.0f")
    seconds = [sum(mix.wall.values()) for mix in mixes]
    line("seconds", seconds, ".1f")
    for phase in mixes[-1].wall:
        line(f"  {phase}", [mix.wall[phase] for mix in mixes], ".1f")
    line("peak memory, GB", [memory.own / 1e9 for memory in memories], ".2f")
    line("mapped file pages, reclaimable, GB", [memory.mapped / 1e9 for memory in memories], ".2f")
    line("M tokens/s", [total["tokens"] / one / 1e6 for total, one in zip(totals, seconds, strict=True)], ".2f")
    return table


class PeakMemory:
    """Peaks over the processes that this one has started: `own`, memory that nobody can take back, and `mapped`, pages
    of files.

    Proportional set size (shared pages count once), from the kernel's /proc/PID/smaps_rollup.
    """

    def __enter__(self) -> "PeakMemory":
        import psutil

        self.own, self.mapped, self.done = 0, 0, threading.Event()
        me = psutil.Process()

        def sample() -> None:
            while not self.done.wait(2):  # the maps of three processes take 0.2 s to read; peaks last for seconds
                own = whole = 0
                for process in me.children(recursive=True):
                    try:
                        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
                    except OSError:  # it has ended
                        continue
                    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
                    whole += 1024 * kilobytes["Pss"]
                    own += 1024 * (kilobytes["Pss_Anon"] + kilobytes["Pss_Shmem"])
                self.own, self.mapped = max(self.own, own), max(self.mapped, whole - own)

        self.thread = threading.Thread(target=sample)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def record(tables: list[Table]) -> None:
    """Append the tables with machine, versions and date to docs/benchmarks.md."""
    about = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.split(":")[1].strip() for line in about if "model name" in line), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("axolotl", "tokenizers", "gigatoken", "tiktoken", "rensa", "pyarrow")
    )
    lines = [
        f"\n## The mix, {time.strftime('%Y-%m-%d')}, commit {commit.stdout.strip()}",
        f"{cpu}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GB; Python {platform.python_version()}, {packages}",
    ]
    for table in tables:
        head = [str(column.header) for column in table.columns]
        lines += ["", f"{table.title}", "", "| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
        cells = zip(*(column.cells for column in table.columns), strict=True)
        lines += ["| " + " | ".join(map(str, row)) + " |" for row in cells]
    with (ROOT / "docs/benchmarks.md").open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
