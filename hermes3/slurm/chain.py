"""The stages from mixes to report as data, made of a file of launch/pipelines/ and the two recipes that it names."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

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
EVAL, MIX, STEP = "launch/eval.sbatch", "launch/mix.sbatch", "launch/step.sbatch"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Mixes(_Strict):
    """The specs of the mixes that the recipes train on."""

    sft: Path
    dpo: Path


class Evaluation(_Strict):
    """What an evaluation job asks of Slurm, and which suites score the epochs and the final models.

    `also`: further suites of the last model, run to a folder below its results; each with its own options.
    """

    hardware: Hardware
    epochs: str
    final: str
    also: dict[str, list[str]] = {}
    options: list[str] = []  # further ones of `hermes3 eval`


class Pipeline(_Strict):
    """A file of launch/pipelines/. `base`: evaluate the base model too. `sbatch`: options for one script's jobs."""

    sft: Path
    dpo: Path
    mixes: Mixes
    evaluation: Evaluation
    base: bool = False
    sbatch: dict[Literal["train", "eval", "mix", "step"], list[str]] = {}


@dataclass(frozen=True)
class Stage:
    """One job. `reads`: what a user edits; a change of it makes the stage run again. `leaves`: what it makes.

    `hardware` None: a few CPUs, as the script says. `run`: a training run's output_dir. `spec`: a mix's spec.
    `base`: the model that no stage makes. `inputs`: files of earlier stages that it reads.
    """

    name: str
    script: str
    arguments: list[str]
    needs: list[str]
    reads: list[Path]
    leaves: Path
    hardware: Hardware | None = None
    run: Path | None = None
    spec: Path | None = None
    base: Path | None = None
    inputs: list[Path] = field(default_factory=list)
    options: list[str] = field(default_factory=list)

    @property
    def command(self) -> str:
        return " ".join([self.script, *self.arguments])


def load(pipeline: str) -> tuple[str, Pipeline]:
    """(name, pipeline) of `pipeline`, a name in launch/pipelines/ or a file. `UserError` names the file and the key."""
    path = Path(pipeline) if pipeline.endswith((".yml", ".yaml")) else PIPELINES / f"{pipeline}.yml"
    return path.stem, read_model(path, Pipeline, known=PIPELINES)


def stages(pipeline: Pipeline, commands: Path) -> list[Stage]:
    """The pipeline's stages, each after those that it needs. `commands`: the folder of what the report shows of them.

    `UserError` for recipes that are no chain.
    """
    sft, dpo = read(pipeline.sft), read(pipeline.dpo)
    run, aligned = _output(pipeline.sft, sft), _output(pipeline.dpo, dpo)
    best = run / "best"
    if Path(str(dpo.get("base_model"))) != best:
        raise UserError(f"{pipeline.dpo}: base_model: {dpo.get('base_model')}; set {best}, the epoch that is selected")
    scores, report = run.parent / "eval", run.parent / "report"
    suite, final = pipeline.evaluation.epochs, pipeline.evaluation.final
    epochs = [str(n) for n in range(1, int(sft.get("num_epochs") or 1) + 1)]
    mixes = {"mix_sft": (pipeline.mixes.sft, mix_of(sft)), "mix_dpo": (pipeline.mixes.dpo, mix_of(dpo))}

    packing = {"mix_sft": [str(pipeline.sft)] if sft.get("sample_packing") else []}  # its log says the exact steps
    chain = [_mix(name, spec, out, packing.get(name, [])) for name, (spec, out) in mixes.items()]
    base, scored = Path(str(sft.get("base_model"))), {}  # scored: as the report names it -> results
    if pipeline.base:
        scored["base"] = scores / "base"
        chain.append(replace(_eval("eval_base", pipeline, base, final, scored["base"], []), base=base))
    chain.append(replace(_train("sft", pipeline.sft, sft, run, ["mix_sft"]), base=base))
    for n in epochs:
        chain.append(_eval(f"eval_epoch_{n}", pipeline, run, suite, scores / f"epoch_{n}", ["sft"], "--epoch", n))
    select = ["hermes3", "select", str(run), *(f"{n}={scores / f'epoch_{n}'}" for n in epochs), "--suite", suite]
    select += [word for group in judged(suite) for word in ("--without", group)]
    chain.append(_step("select", select, [f"eval_epoch_{n}" for n in epochs], best, [file_of(suite)]))
    scored["SFT"] = run / "best_results"
    if final != suite:  # else the chosen epoch has these scores already
        scored["SFT"] = scores / "sft"
        chain.append(_eval("eval_sft", pipeline, best, final, scored["SFT"], ["select"]))
    chain.append(_train("dpo", pipeline.dpo, dpo, aligned, ["mix_dpo", "select"]))
    chain.append(_step("merge", ["axolotl", "merge-lora", str(pipeline.dpo)], ["dpo"], aligned / "merged", []))
    scored["SFT+DPO"] = scores / "dpo"
    chain.append(_eval("eval_dpo", pipeline, aligned / "merged", final, scored["SFT+DPO"], ["merge"]))
    for other, options in pipeline.evaluation.also.items():
        label = Path(other).stem
        below = scored["SFT+DPO"] / label
        # after eval_dpo, which sets aside what lies below it of another model
        stage = _eval(f"eval_{label}", pipeline, aligned / "merged", other, below, ["eval_dpo"])
        chain.append(replace(stage, arguments=[*stage.arguments, *options]))
    page = ["hermes3", "report", "--out", str(report), "--commands", str(commands)]
    page += [word for _, out in mixes.values() for word in ("--mix", str(out))]
    page += ["--run", f"SFT={run}", "--run", f"DPO={aligned}"]
    page += [word for name, folder in scored.items() for word in ("--scores", f"{name}={folder}")]
    needs = [one.name for one in chain if one.script == EVAL and not one.name.startswith("eval_epoch")]
    chain.append(_step("report", page, needs, report / "index.html", []))
    return [replace(one, options=pipeline.sbatch.get(Path(one.script).stem, [])) for one in chain]


def missing(stages: list[Stage]) -> list[str]:
    """What these stages read and no stage makes, and is not there, each with its remedy where there is one."""
    lacks = []
    for one in stages:
        lacks += [f"{one.name}: {path} is not there" for path in one.reads if not path.exists()]
        if one.base and not one.base.is_dir():
            lacks.append(f"{one.name}: base_model: no {one.base}; see the comment on its line in the recipe")
        if one.spec and one.spec.exists() and not (base := specs.load(one.spec).tokenizer).is_dir():
            lacks.append(f"{one.name}: tokenizer: no {base}; make it with `hermes3 tokenizer build BASE {base}`")
        if one.script == EVAL and not VLLM.is_dir() and {"vllm", "--backend=vllm"} & set(one.arguments):
            lacks.append(f"{one.name}: {VLLM} is not there; make vLLM's environment as docs/slurm.md says")
    return lacks


def judged(suite: str) -> list[str]:
    """Groups that count when an epoch is chosen, and that need a judge's endpoint: no stage makes their scores."""
    return [name for name, group in load_suite(suite).groups.items() if group.selects and group.by == "mt_bench"]


def _output(path: Path, recipe: dict[str, Any]) -> Path:
    if not recipe.get("output_dir"):
        raise UserError(f"{path}: output_dir is missing; give the folder that the run writes")
    return Path(str(recipe["output_dir"]))


def _mix(name: str, spec: Path, out: Path, packing: list[str]) -> Stage:
    return Stage(name, MIX, [str(spec), str(out), *packing], [], [spec], out / "manifest.json", spec=spec)


def _train(name: str, path: Path, recipe: dict[str, Any], output: Path, needs: list[str]) -> Stage:
    reads = [path, *([Path(recipe["deepspeed"])] if isinstance(recipe.get("deepspeed"), str) else [])]
    inputs = [mix_of(recipe) / "manifest.json"]
    return Stage(name, TRAIN, [str(path)], needs, reads, output, hardware_of(path, recipe), run=output, inputs=inputs)


def _eval(name: str, pipeline: Pipeline, model: Path, suite: str, out: Path, needs: list[str], *more: str) -> Stage:
    arguments = [str(model), "--suite", suite, "--out", str(out), *more, *pipeline.evaluation.options]
    reads = [file_of(suite), Path("eval/tasks")]
    return Stage(name, EVAL, arguments, needs, reads, out, pipeline.evaluation.hardware)


def _step(name: str, command: list[str], needs: list[str], leaves: Path, reads: list[Path]) -> Stage:
    return Stage(name, STEP, command, needs, reads, leaves)
