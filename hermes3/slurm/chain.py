"""The stages from mixes to report as data, made of a file of launch/pipelines/ and the two recipes that it names."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from hermes3.files import UserError, read_model
from hermes3.mix import spec as specs
from hermes3.plan.cost import mix_of
from hermes3.recipe.hardware import Hardware, hardware_of
from hermes3.recipe.read import read
from hermes3.results.suite import file_of
from hermes3.results.suite import load as load_suite
from hermes3.slurm.submit import TRAIN

PIPELINES = Path("launch/pipelines")
VLLM = Path(".venv-eval")  # what launch/eval.sbatch runs vLLM in
QUANTIZE = Path(".venv-quantize")  # of requirements-quantize.txt
EVAL, MIX, STEP = "launch/eval.sbatch", "launch/mix.sbatch", "launch/step.sbatch"


class Evaluation(BaseModel, extra="forbid"):
    """What an evaluation job asks of Slurm, and which suites score the epochs and the final models."""

    hardware: Hardware
    epochs: str
    final: str
    also: dict[str, list[str]] = {}  # further suites of the last model, each with its own options
    options: list[str] = []  # further ones of `hermes3 eval`
    fp8: bool = False  # measure FP8 copies of the final models, as the paper did of its 405B


class Pipeline(BaseModel, extra="forbid"):
    """A file of launch/pipelines/. `base`: evaluate the base model too. `sbatch`: options for one script's jobs."""

    sft: Path
    dpo: Path
    mixes: dict[Literal["sft", "dpo"], Path] = Field(min_length=2)
    evaluation: Evaluation
    base: bool = False
    sbatch: dict[Literal["train", "eval", "mix", "step"], list[str]] = {}


@dataclass(frozen=True)
class Stage:
    """One job."""

    name: str
    script: str
    arguments: list[str]
    needs: list[str]
    reads: list[Path]  # what a user edits: a change of it makes the stage run again
    leaves: Path  # what it makes
    job: str  # its name
    stamp: Path  # with the stage's record beside it
    hardware: Hardware | None = None  # None: a few CPUs, as the script says
    run: Path | None = None  # a training run's output_dir
    spec: Path | None = None  # a mix's
    base: Path | None = None  # the model that no stage makes
    inputs: list[Path] = field(default_factory=list)  # of earlier stages
    options: list[str] = field(default_factory=list)

    @property
    def command(self) -> str:
        return " ".join([self.script, *self.arguments])


def load(pipeline: str) -> tuple[str, Pipeline]:
    """(name, pipeline) of `pipeline`, a name in launch/pipelines/ or a file."""
    path = Path(pipeline) if pipeline.endswith((".yml", ".yaml")) else PIPELINES / f"{pipeline}.yml"
    return path.stem, read_model(path, Pipeline, known=PIPELINES)


def stages(pipeline: Pipeline, folder: Path) -> list[Stage]:
    """The pipeline's stages, each after those that it needs. `folder`: of their records, logs/pipeline/NAME."""
    sft, dpo = read(pipeline.sft), read(pipeline.dpo)
    for path, recipe in ((pipeline.sft, sft), (pipeline.dpo, dpo)):
        if not recipe.get("output_dir"):
            raise UserError(f"{path}: output_dir is missing; give the folder that the run writes")
    run, aligned, base = (Path(str(value)) for value in (sft["output_dir"], dpo["output_dir"], sft.get("base_model")))
    if Path(str(dpo.get("base_model"))) != run / "best":
        wrong = f"{dpo.get('base_model')}; set {run / 'best'}, the epoch that is selected"
        raise UserError(f"{pipeline.dpo}: base_model: {wrong}")
    setting, scores, report, chain = pipeline.evaluation, run.parent / "eval", run.parent / "report", []

    def add(name, script, words, needs, reads, leaves, **more) -> Path:
        more = {"job": f"{folder.name}_{name}", "stamp": folder / f"{name}.done"} | more
        more["options"] = [*more.get("options", []), *pipeline.sbatch.get(Path(script).stem, [])]
        chain.append(Stage(name, script, [*map(str, words)], needs, reads, leaves, **more))
        return leaves

    def train(name, path, recipe, needs, **more) -> None:
        reads = [path, *([Path(recipe["deepspeed"])] if isinstance(recipe.get("deepspeed"), str) else [])]
        out, inputs = Path(recipe["output_dir"]), [mix_of(recipe) / "manifest.json"]
        more |= {"hardware": hardware_of(path, recipe), "run": out, "inputs": inputs}
        add(name, TRAIN, [path], needs, reads, out, job=path.stem, **more)  # as `hermes3 launch RECIPE` names it

    def score(name, model, needs, suite, epoch=(), options=(), below="", **more) -> Path:
        out = scores / below / name
        words = [model, "--suite", suite, "--out", out, *epoch, *setting.options, *options]
        reads = [file_of(suite), Path("eval/tasks")]
        return add(f"eval_{name}", EVAL, words, needs, reads, out, hardware=setting.hardware, **more)

    def to_measure(name, model, needs) -> tuple[Path, list[str]]:
        """The model that the final suite measures and the stage that makes it: MODEL, or its FP8 copy beside it."""
        if not setting.fp8:
            return model, needs
        out, whole_node = model.with_name(f"{model.name}_fp8"), ["--exclusive", "--mem=0"]
        words = [QUANTIZE / "bin/hermes3", "quantize", model, out]
        return add(f"fp8_{name}", STEP, words, needs, [], out, options=whole_node), [f"fp8_{name}"]

    packing = [pipeline.sft] if sft.get("sample_packing") else []  # its log says the exact steps
    mixes = {"sft": (pipeline.mixes["sft"], mix_of(sft), packing), "dpo": (pipeline.mixes["dpo"], mix_of(dpo), [])}
    for name, (spec, out, recipe) in mixes.items():  # of all sizes: each sees the others' jobs and records
        more = {"spec": spec, "job": f"mix_{out.name}", "stamp": folder.parent / f"mixes/{out.name}.done"}
        add(f"mix_{name}", MIX, [spec, out, *recipe], [], [spec], out / "manifest.json", **more)
    scored = {}  # as the report names it -> results
    if pipeline.base:
        scored["base"] = score("base", base, [], setting.final, base=base)
    train("sft", pipeline.sft, sft, ["mix_sft"], base=base)
    numbers = range(1, int(sft.get("num_epochs") or 1) + 1)
    epochs = {n: score(f"epoch_{n}", run, ["sft"], setting.epochs, epoch=("--epoch", n)) for n in numbers}
    select = ["hermes3", "select", run, *(f"{n}={out}" for n, out in epochs.items()), "--suite", setting.epochs]
    select += [word for group in judged(setting.epochs) for word in ("--without", group)]
    reads = [file_of(setting.epochs)]
    best = add("select", STEP, select, [f"eval_epoch_{n}" for n in epochs], reads, run / "best")
    scored["SFT"] = run / "best_results"
    if setting.final != setting.epochs:  # else the chosen epoch has these scores already
        scored["SFT"] = score("sft", *to_measure("sft", best, ["select"]), setting.final)
    train("dpo", pipeline.dpo, dpo, ["mix_dpo", "select"])
    last = add("merge", STEP, ["axolotl", "merge-lora", pipeline.dpo], ["dpo"], [], aligned / "merged")
    last, needs = to_measure("dpo", last, ["merge"])
    scored["SFT+DPO"] = score("dpo", last, needs, setting.final)
    for suite, options in setting.also.items():  # after eval_dpo, which sets aside what lies below it of another model
        score(Path(suite).stem, last, ["eval_dpo"], suite, options=options, below="dpo")
    page = ["hermes3", "report", "--out", report, "--commands", folder / "commands"]
    page += [word for _, out, _ in mixes.values() for word in ("--mix", out)]
    page += ["--run", f"SFT={run}", "--run", f"DPO={aligned}"]
    page += [word for name, folder in scored.items() for word in ("--scores", f"{name}={folder}")]
    needs = [one.name for one in chain if one.script == EVAL and not one.name.startswith("eval_epoch")]
    add("report", STEP, page, needs, [], report / "index.html")
    return chain


def missing(stages: list[Stage]) -> list[str]:
    """What these stages read and no stage makes, and is not there, each once, with its remedy where there is one."""
    lacks = []
    for one in stages:
        lacks += [f"{one.name}: {path} is not there" for path in one.reads if not path.exists()]
        if one.base and not one.base.is_dir():
            lacks.append(f"{one.name}: base_model: no {one.base}; see the comment on its line in the recipe")
        if one.spec and one.spec.exists() and not (base := specs.load(one.spec).tokenizer).is_dir():
            lacks.append(f"tokenizer: no {base}; make it with `hermes3 tokenizer build BASE {base}`")
        if "quantize" in one.arguments and not QUANTIZE.is_dir():
            lacks.append(f"no {QUANTIZE}; bash launch/install.sh {QUANTIZE} requirements-quantize.txt")
        if one.script == EVAL and not VLLM.is_dir() and {"vllm", "--backend=vllm"} & set(one.arguments):
            lacks.append(f"no {VLLM}; bash launch/install.sh {VLLM} requirements-eval.txt")
    return list(dict.fromkeys(lacks))


def judged(suite: str) -> list[str]:
    """Groups that count when an epoch is chosen, and that need a judge's endpoint: no stage makes their scores."""
    return [name for name, group in load_suite(suite).groups.items() if group.selects and group.by == "mt_bench"]
