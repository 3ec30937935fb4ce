"""Fixtures that the tests share: a tokenizer made from nothing, and the whole chain, run once."""

import gc
import os
import signal
import subprocess
import sys
import time
from functools import reduce
from pathlib import Path
from unittest import mock

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TINY = ROOT / "outputs/tiny"
# tests of ours never look beyond this machine
os.environ |= {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "2"}
os.environ["OMP_WAIT_POLICY"] = "passive"  # threads that spin while they wait made torch 20 times slower on busy cores

SLOW = yaml.safe_load(Path(__file__).with_name("slow.yml").read_text(encoding="utf-8"))
GROUPS = {file: group for group, files in SLOW["together"].items() for file in files}


def pytest_report_header():
    """A file that was renamed would be slow, or share, no more."""
    gone = [name for name in {*SLOW["files"], *GROUPS} if not (ROOT / f"tests/test_{name}.py").is_file()]
    return [f"tests/slow.yml: there is no test_{name}.py" for name in sorted(gone)]


def pytest_collection_modifyitems(items):
    """Mark what is slow; in one of several processes, begin with what takes longest."""
    for item in items:
        if _file(item.nodeid) in SLOW["files"] or {*SLOW["fixtures"]} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    if os.environ.get("PYTEST_XDIST_WORKER"):
        items.sort(key=lambda item: [*SLOW["together"], None].index(GROUPS.get(_file(item.nodeid))))


def _file(nodeid: str) -> str:
    return Path(nodeid.split("::")[0]).stem.removeprefix("test_")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests of one file, or of one group, run in one process."""
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = lambda nodeid: GROUPS.get(_file(nodeid), _file(nodeid))
    return scheduler


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    """Paths in recipes and specs are relative to the repository, as a user has them."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def samples(tmp_path_factory) -> Path:
    """The sample conversations, written by their generator."""
    out = tmp_path_factory.mktemp("samples") / "data"
    command = [sys.executable, "data_mixes/samples/generate.py", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return out


@pytest.fixture(scope="session")
def corpus(samples) -> list[Path]:
    """What the Makefile gives to learn a vocabulary from."""
    return [*sorted((samples / "train").glob("*.jsonl")), ROOT / "data_mixes/samples/common_words.txt"]


@pytest.fixture(scope="session")
def llama(corpus, tmp_path_factory) -> Path:
    """A base model from nothing, with Llama 3.1's special tokens."""
    from data_mixes.samples import tiny_base

    out = tmp_path_factory.mktemp("llama") / "llama"
    tiny_base.build(out, corpus)
    return out


@pytest.fixture(scope="session")
def base(llama) -> Path:
    """The same model with the Hermes tokenizer."""
    from hermes3.chat import tokenizer

    tokenizer.build(str(llama), llama.with_name("base"))
    return llama.with_name("base")


@pytest.fixture(scope="session")
def tokenizer(base):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


@pytest.fixture(scope="session")
def renderer(base):
    from hermes3.chat.render import Renderer

    return Renderer(base)


@pytest.fixture(scope="session")
def hermes_llama(tmp_path_factory) -> Path:
    """The Hermes tokenizer over Llama 3.1's true vocabulary, without a model."""
    from bench.llama_tokenizer import make

    return make(tmp_path_factory.mktemp("hermes_llama"))


@pytest.fixture(scope="module")
def axolotl_process():
    """What Axolotl and our plugin set for a whole process is put back: plugins (none to begin with), variables, the
    debug log, the frozen. One thread computes: so small a model only waits for a second."""
    import torch
    from axolotl.integrations.base import PluginManager
    from datasets import Dataset
    from ranks import IN_PROCESS

    manager, threads = PluginManager.get_instance(), torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # the packer collects garbage at every packing: 0.4 s each over all that is imported
    with (
        mock.patch.object(manager, "plugins", type(manager.plugins)()),
        mock.patch.dict(os.environ),
        mock.patch("axolotl.cli.config.prepare_debug_log"),
        mock.patch.multiple(Dataset, **IN_PROCESS),
    ):
        yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture
def quick_gc():
    """Axolotl collects garbage often: 0.4 s each over all that torch has loaded, unless that is set aside."""
    gc.freeze()
    yield
    gc.unfreeze()


def _cluster(name: str, **size: int):
    """A fixture: a Slurm cluster of nodes with eight pretended H100 each. Every test finds it idle."""

    @pytest.fixture(scope="session", name=name)
    def cluster(tmp_path_factory):
        import slurm_lab

        if missing := slurm_lab.missing():
            reason = f"no Slurm here: {', '.join(missing)} not found (apt install slurmctld slurmd slurm-client munge)"
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
        with slurm_lab.SlurmLab(tmp_path_factory.mktemp(name), **size) as lab:
            yield lab

    return cluster


slurm = _cluster("slurm", nodes=4, cpus=16)
slurm16 = _cluster("slurm16", nodes=16, cpus=96, memory_mb=1_000_000)  # are jobs of real size accepted?


@pytest.fixture(autouse=True)
def idle_slurm(request):
    """After a test with a cluster: no job is left on it, and every node is up."""
    yield
    for name in {"slurm", "slurm16"} & request.node.funcargs.keys():
        request.node.funcargs[name].reset()


@pytest.fixture(scope="session")
def stopped_sft(base, tmp_path_factory):
    """A packed run on two ranks, stopped three times, beside one that went through."""
    import ranks

    return ranks.stopped_sft(base, tmp_path_factory.mktemp("stopped_sft"))


@pytest.fixture(scope="session")
def stopped_dpo(base, tmp_path_factory):
    """The same of DPO with LoRA, stopped once."""
    import ranks

    return ranks.stopped_dpo(base, tmp_path_factory.mktemp("stopped_dpo"))


def at(value, path: str):
    """What stands in `value` at `path`, e.g. `runs.0.kind`."""
    return reduce(lambda of, key: of[int(key) if isinstance(of, list) else key], path.split("."), value)


def real_rows() -> list[dict]:
    """The conversations of the real files beside the repository."""
    from hermes3.mix import lock, read, spec
    from hermes3.mix.adapt import ADAPTERS

    rows, root = [], ROOT.parent / "shared/data"
    for _, source in spec.load(ROOT / "data_mixes/open_small.yml").sources():
        for chunk in read.chunks(source.name, lock.files_of(source, root, None, Path("open_small.yml"))):
            rows += [ADAPTERS[source.adapter](read.parse(line)) for line in chunk.lines]
    return rows


@pytest.fixture(scope="session")
def chain() -> dict:
    """The log of `make demo`, as a user types it. Where nothing is trained yet, it is killed in the middle of SFT and
    run again; `interrupted`: {stage: time at which it had ended before the kill}, or {}."""
    TINY.mkdir(parents=True, exist_ok=True)
    log, interrupted = TINY / "demo.log", {}
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # as a user has it: __pycache__ makes no stage anew

    def start() -> subprocess.Popen:
        with log.open("wb") as file:
            options = {"cwd": ROOT, "env": env, "start_new_session": True}
            return subprocess.Popen(["make", "demo"], stdout=file, stderr=file, **options)

    if not (TINY / "stages/07-sft").exists():
        killed = start()
        while killed.poll() is None and not (TINY / "sft/debug.log").exists():
            time.sleep(0.5)
        time.sleep(10)  # among the first steps
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        interrupted = {stamp.name: stamp.stat().st_mtime for stamp in (TINY / "stages").iterdir()}
    code, text = start().wait(), log.read_text(encoding="utf-8", errors="replace")
    assert code == 0, text[-3000:]
    return {"interrupted": interrupted, "log": text}
