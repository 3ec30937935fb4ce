"""`hermes3 launch --pipeline` on a real Slurm: the chain runs to the report, a failure stops it, a rerun ends it."""

import errno
import json
import os
import sys
from pathlib import Path

import pytest
import slurm_site
import yaml
from conftest import ROOT
from slurm_site import launch

from hermes3.files import UserError
from hermes3.mix import spec as specs
from hermes3.slurm import chain, pipeline, queue, record, start
from hermes3.slurm.chain import Stage

AGAIN = "hermes3 launch --pipeline it"


@pytest.fixture
def site(tmp_path):
    return slurm_site.make(tmp_path / "site")


@pytest.fixture
def stand_in(slurm, site):
    """Take a chain of shell commands (stand_in_chain.py) through the pipeline: {stage: {...}} -> what it says."""

    def run(stages: dict, *more: str, submit: bool = True, check: bool = True) -> dict:
        (site / "chain.json").write_text(json.dumps({"name": "it", "stages": stages}))
        more = (*more, "--submit") if submit else more
        done = slurm.run(sys.executable, ROOT / "tests/stand_in_chain.py", "chain.json", *more, cwd=site, check=check)
        return json.loads(done.stdout) if check else done

    return run


def log_of(site: Path, one: str) -> str:
    return Path(site / record.read(site / f"logs/pipeline/it/{one}.done").log).read_text()


def finish(slurm, timeout: float = 120) -> None:
    slurm.until(lambda: not slurm.jobs(), timeout, "no job left", every=0.5)


def test_a_failing_stage_stops_what_depends_on_it_and_a_rerun_finishes_the_rest(slurm, site, stand_in):
    (site / "settings").write_text("1")
    stages = {
        "data": {"run": "echo data >>ran", "reads": ["settings"]},
        "train": {"run": "echo train >>ran; test -e repaired || exit 3", "needs": ["data"]},
        "other": {"run": "echo other >>ran"},
        "score": {"run": "echo score >>ran", "needs": ["train", "other"]},
        "report": {"run": "echo report >>ran", "needs": ["score"]},
    }
    assert set(stand_in(stages)["submitted"]) == set(stages)
    finish(slurm)
    assert sorted((site / "ran").read_text().split()) == ["data", "other", "train"]
    last = log_of(site, "train").splitlines()[-1]
    assert "stage train failed with exit code 3" in last and "score, report" in last and last.endswith(AGAIN)

    said = stand_in(stages, submit=False)["states"]
    assert [said[one][0] for one in stages] == ["complete", "to run", "complete", "to run", "to run"]
    assert "ended unfinished: see logs/it_train-" in said["train"][1]
    assert "was cancelled before it began" in said["report"][1]

    (site / "repaired").touch()
    (site / "ran").unlink()
    assert list(stand_in(stages)["submitted"]) == ["train", "score", "report"]
    finish(slurm)
    assert (site / "ran").read_text().split() == ["train", "score", "report"]
    again = stand_in(stages)
    assert again["submitted"] == {} and {what for what, _ in again["states"].values()} == {"complete"}

    (site / "settings").write_text("2")  # as a user edits a recipe
    changed = stand_in(stages, submit=False)["states"]
    assert [changed[one][0] for one in stages] == ["to run", "to run", "complete", "to run", "to run"]
    assert changed["data"][1].startswith("settings has changed since job ")

    (site / "repaired").unlink()
    stand_in(stages)
    finish(slurm)
    assert stand_in(stages, submit=False)["states"]["train"][0] == "to run"  # its first success is of other settings


def test_what_is_in_the_queue_is_not_submitted_twice(slurm, site, stand_in):
    first = {"slow": {"run": "until test -e go; do sleep 0.2; done"}, "next": {"run": "true", "needs": ["slow"]}}
    jobs = stand_in(first)["submitted"]
    again = stand_in({**first, "last": {"run": "true", "needs": ["next"]}})
    assert list(again["submitted"]) == ["last"]
    assert again["states"]["next"] == ["in the queue", f"job {jobs['next']} PENDING (Dependency)"]
    (site / "go").touch()
    finish(slurm)
    assert all(slurm.job(jid)["JobState"] == "COMPLETED" for jid in [*jobs.values(), *again["submitted"].values()])


def stand_in_program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def test_work_that_meets_its_time_limit_goes_on_in_another_job(slurm, site):
    """eval.sbatch with a `hermes3` that is cut off the first time."""
    (site / ".venv").unlink()
    body = 'echo "attempt ${SLURM_RESTART_COUNT:-0}: $*"; [[ -n ${SLURM_RESTART_COUNT:-} ]] || sleep 100'
    stand_in_program(site / ".venv/bin/hermes3", body)
    stand_in_program(site / ".venv/bin/python", f'exec {sys.executable} "$@"')
    stamp = site / "logs/it.done"
    jid = slurm.submit(f"--export=ALL,HERMES3_STAMP={stamp}", "launch/eval.sbatch", "m", "--suite", "tiny", cwd=site)
    log = site / f"logs/eval-{jid}.log"
    slurm.until(lambda: log.is_file() and "attempt 0" in log.read_text(), 60, "it runs")
    slurm.run("scancel", "--batch", "--signal=USR1", jid)  # as Slurm does ahead of the limit
    assert slurm.wait_job(jid)["JobState"] == "COMPLETED"
    text = log.read_text()
    assert "attempt 0: eval m --suite tiny" in text and "is queued again" in text and "attempt 1" in text
    assert json.loads(stamp.read_text())["job"] == str(jid)


def test_vllm_runs_in_its_own_environment_or_not_at_all(slurm, site):
    """A model alone is evaluated on the paper's suite, by vLLM too."""
    paper = "--suite paper --out outputs/8b_sft-eval --backend vllm --model-args tensor_parallel_size=8"
    arguments = {"m --backend vllm": "m --backend vllm", "m --backend=vllm": "m --backend=vllm"}
    arguments["outputs/8b_sft/"] = f"outputs/8b_sft/ {paper}"

    def logs(state: str) -> list[str]:
        words = [line.split() for line in arguments]
        jobs = [slurm.submit("--gpus-per-node=8", "launch/eval.sbatch", *line, cwd=site) for line in words]
        assert {slurm.wait_job(jid)["JobState"] for jid in jobs} == {state}
        return [(site / f"logs/eval-{jid}.log").read_text() for jid in jobs]

    assert all(".venv-eval is not there" in log for log in logs("FAILED"))
    stand_in_program(site / ".venv-eval/bin/hermes3", 'echo "vLLM has $*"')
    assert [
        f"vLLM has eval {line}" in log for line, log in zip(arguments.values(), logs("COMPLETED"), strict=True)
    ] == [
        True,
        True,
        True,
    ]


# the rules, without Slurm


RECIPE = "{hardware: {gpu: cpu, nodes: 1, gpus_per_node: 1}, seed: 1}"


def a_stage(tmp_path: Path, name: str, needs: list[str] | None = None, **more) -> Stage:
    reads, leaves = tmp_path / f"{name}.yml", tmp_path / f"{name}.out"
    reads.write_text(RECIPE)
    return Stage(name, "launch/step.sbatch", [str(reads)], needs or [], [reads], leaves, **more)


def complete(one: Stage) -> None:
    """As its job 7 leaves it."""
    stamp = pipeline.stamp_of("it", one)
    one.leaves.mkdir()
    record.write(
        stamp, record.Record(one.name, one.command, [*map(str, one.reads + one.inputs)], [], AGAIN, 7, "a.log")
    )
    record.begin(stamp)
    record.done(stamp)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A mix and a training on it, both complete; `what` says their states."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    manifest = tmp_path / "manifest.json"
    manifest.write_text("1")
    mix = a_stage(tmp_path, "mix")
    sft = a_stage(tmp_path, "sft", ["mix"], run=tmp_path / "sft.out", inputs=[manifest])
    for one in (mix, sft):
        complete(one)

    def what(*done: str) -> dict[str, str]:
        states = pipeline.states(AGAIN, "it", [mix, sft], {}, list(done))
        assert all(state.why for state in states.values())
        return {name: state.what for name, state in states.items()}

    assert what() == {"mix": "complete", "sft": "complete"}
    return mix, sft, what


def edit(one: Stage) -> None:
    one.reads[0].write_text(RECIPE.replace("seed: 1", "seed: 2"))


def test_a_training_is_not_taken_up_from_the_checkpoints_of_another(trained):
    mix, sft, what = trained
    edit(sft)
    assert what()["sft"] == "to run"  # no checkpoint is in the way
    (sft.run / "checkpoint-10").mkdir()
    with pytest.raises(ValueError, match=r"sft: .*sft.yml has changed since job 7.*mv .*sft.out .*--done sft"):
        what()
    assert what("sft")["sft"] == "complete"
    sft.reads[0].write_text(RECIPE)
    edit(mix)
    with pytest.raises(ValueError, match="mix, which it needs, runs again"):
        what()
    with pytest.raises(ValueError, match="--done sfd: no such stage; there are mix, sft"):
        what("sfd")


def test_an_unfinished_training_goes_on_unless_what_it_is_made_of_has_changed(trained):
    """Its own record says so: a remark in the recipe is no change."""
    mix, sft, what = trained
    start.hold(sft.reads[0], start.read(sft.reads[0]), sft.run)
    (sft.run / "checkpoint-10").mkdir()
    pipeline.stamp_of("it", sft).unlink()
    sft.reads[0].write_text(f"# a remark\n{RECIPE}")
    assert what()["sft"] == "to run"
    edit(mix)
    with pytest.raises(ValueError, match=r"sft: mix, which it needs, runs again.*mv .*sft.out .*--done mix"):
        what()
    assert what("mix")["sft"] == "to run"
    edit(sft)
    with pytest.raises(ValueError, match=r"sft.yml has changed: seed was 1, is 2.*mv .*sft.out .*put that back"):
        what("mix")


def test_what_a_stage_was_made_of_or_left_and_is_another_or_gone(trained):
    mix, sft, what = trained
    sft.inputs[0].write_text("2")
    assert (
        pipeline.states(AGAIN, "it", [mix, sft], {}, [])["sft"].why == f"{sft.inputs[0]} has changed since job 7 began"
    )
    mix.leaves.rmdir()
    assert pipeline.states(AGAIN, "it", [mix], {}, [])["mix"].why.endswith("mix.out is gone")


def test_a_running_stage_whose_need_must_run_first_is_not_left_behind(trained):
    mix, sft, _ = trained
    edit(mix)
    pipeline.stamp_of("it", sft).unlink()
    jobs = {"sft": queue.Job(9, "sft", "RUNNING", "None")}
    with pytest.raises(ValueError, match="sft is in the queue as job 9, and mix.*mix.yml has changed.*scancel 9"):
        pipeline.states(AGAIN, "it", [mix, sft], jobs, [])


def test_a_refused_submission_leaves_no_half_chain(trained, monkeypatch):
    """Nor one that sbatch takes and the cluster cannot run: it is asked before anything is submitted."""
    mix, sft, _ = trained
    for one in (mix, sft):
        edit(one)
    lines, cancelled = [], []

    def submit(line: list[str]) -> int:
        if "--dependency=afterok:41" in line:
            raise UserError("sbatch: error: invalid partition specified: none")
        lines.append(line)
        return 41

    def test(line: list[str]) -> None:
        if sft.reads[0].name in line[-1]:
            raise UserError("Requested node configuration is not available")

    for name, stand_in in {"submit": submit, "test": test, "cancel": cancelled.extend}.items():
        monkeypatch.setattr(queue, name, stand_in)
    states = pipeline.states(AGAIN, "it", [mix, sft], {}, [])
    submission = pipeline.Submission(AGAIN, "it", [mix, sft], states)
    with pytest.raises(ValueError, match="stage sft: this cluster cannot run it now; nothing is submitted"):
        submission.submit()
    assert lines == []
    with pytest.raises(ValueError, match="stage sft was refused; the 1 before it are cancelled(.|\n)*partition.*none"):
        submission.submit(check=False)
    assert len(lines) == 1 and cancelled == [41]


@pytest.mark.parametrize("back", [False, True])
def test_a_stage_is_made_of_what_its_job_has_read(trained, back, monkeypatch):
    """The file is edited while the job waits, and put back once it runs; or edited while it runs."""
    mix, _, what = trained
    stamp = pipeline.stamp_of("it", mix)
    if back:
        edit(mix)
    record.begin(stamp)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    mix.reads[0].write_text(RECIPE) if back else edit(mix)
    record.begin(stamp)  # queued again, it goes on where it was
    record.done(stamp)
    assert what()["mix"] == "to run"


def test_a_launch_that_is_killed_has_noted_the_job_before(trained, monkeypatch):
    mix, _, what = trained
    edit(mix)
    stamp = pipeline.stamp_of("it", mix)

    def killed(line):
        assert record.read(stamp).job is None and not stamp.exists()
        record.begin(stamp)
        record.done(stamp)  # the job runs all the same
        raise SystemExit

    monkeypatch.setattr(queue, "submit", killed)
    states = pipeline.states(AGAIN, "it", [mix], {}, [])
    with pytest.raises(SystemExit):
        pipeline.Submission(AGAIN, "it", [mix], states).submit(check=False)
    assert what()["mix"] == "complete"
    mix.reads[0].write_text(RECIPE)
    assert what()["mix"] == "to run"


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSYS, "not locked"), (errno.EWOULDBLOCK, "wait for it")])
def test_a_file_system_without_flock_is_said_and_no_hindrance(tmp_path, monkeypatch, capsys, number, words):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pipeline.fcntl, "flock", flock)
    try:
        with pipeline.alone(tmp_path):
            assert words in capsys.readouterr().err
    except ValueError as error:
        assert words in str(error)


def test_a_mix_is_complete_when_it_was_built_from_its_spec_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec, manifest = tmp_path / "one.yml", tmp_path / "mixes/one/manifest.json"
    spec.write_text((ROOT / "data_mixes/tiny_dpo.yml").read_text())
    mix = Stage("mix_dpo", "launch/mix.sbatch", [], [], [spec], manifest, spec=spec)

    def what() -> tuple[str, str]:
        it = pipeline.states(AGAIN, "it", [mix], {}, [])["mix_dpo"]
        return it.what, it.why

    assert what() == ("to run", f"{manifest.parent} is not built")
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"spec": specs.load(spec).model_dump(mode="json"), "lock": None}))
    assert what()[0] == "complete"
    spec.write_text(spec.read_text().replace("seed: 42", "seed: 43"))
    assert what() == ("to run", f"{spec} has changed since {manifest.parent} was built")


@pytest.mark.parametrize("name", ["tiny", "8b", "70b", "405b"])
def test_every_pipeline_names_what_is_there(name):
    """Scripts, suites and recipes; each stage stands behind those that it needs, and all lead to the report."""
    read = chain.load(name)[1]
    stages = chain.stages(read, Path("commands"))
    names = [one.name for one in stages]
    assert all(names.index(need) < names.index(one.name) for one in stages for need in one.needs)
    needed = {need for one in stages for need in one.needs}
    assert [one for one in names if one not in needed] == ["report"]
    assert [path for one in stages for path in [Path(one.script), *one.reads] if not path.exists()] == []
    assert [one.name for one in stages if one.name.startswith("eval_epoch")] == [
        f"eval_epoch_{n}" for n in (1, 2, 3, 4)
    ]
    # alignment of the last model, where the report finds it, and once its other scores are in
    last, after = (next(one for one in stages if one.name == name) for name in ("eval_dpo", "eval_alignment"))
    assert after.arguments[:3] == [last.arguments[0], "--suite", "alignment"] and after.needs == [last.name]
    assert after.leaves == last.leaves / "alignment" and str(after.leaves) in after.arguments


def test_what_evaluations_run_in_is_missed_before_anything_is_submitted(tmp_path, monkeypatch):
    stages = [one for one in chain.stages(chain.load("8b")[1], Path("commands")) if one.script == chain.EVAL]
    tiny = [one for one in chain.stages(chain.load("tiny")[1], Path("commands")) if one.script == chain.EVAL]
    monkeypatch.chdir(tmp_path)

    def missed(stages: list[Stage]) -> list[str]:
        return [text.partition(":")[0] for text in chain.missing(stages) if ".venv-eval is not there" in text]

    assert missed(stages) == [one.name for one in stages] and missed(tiny) == []
    (tmp_path / ".venv-eval").mkdir()
    assert missed(stages) == []


def test_a_pipeline_file_says_what_is_wrong_with_it(tmp_path):
    with pytest.raises(ValueError, match="launch/pipelines/9b.yml: no such file; there are 405b, 70b, 8b, tiny"):
        chain.load("9b")
    given = yaml.safe_load((ROOT / "launch/pipelines/tiny.yml").read_text())
    path = tmp_path / "it.yml"
    path.write_text(yaml.safe_dump({**given, "suite": "tiny"}))
    with pytest.raises(ValueError, match=f"{path}: suite: Extra inputs are not permitted"):
        chain.load(str(path))
    dpo = tmp_path / "dpo.yml"
    dpo.write_text(Path(given["dpo"]).read_text().replace("outputs/tiny/sft/best", "outputs/tiny/sft"))
    path.write_text(yaml.safe_dump({**given, "dpo": str(dpo)}))
    with pytest.raises(ValueError, match=f"{dpo}: base_model: .*; set outputs/tiny/sft/best"):
        chain.stages(chain.load(str(path))[1], Path("commands"))


# the chain itself


def small_chain(site: Path, base: Path, samples: Path) -> None:
    """The tiny recipes on two small mixes, one epoch, two questions per task: small.yml."""
    (site / "outputs/tiny").mkdir()
    (site / "outputs/tiny/base").symlink_to(base)
    (site / "outputs/tiny/data").symlink_to(samples)
    for kind, file, rows in (
        ("sft", "train/json_mode.jsonl", "messages"),
        ("dpo", "preference/train.jsonl", "preference"),
    ):
        spec = yaml.safe_load((ROOT / f"data_mixes/tiny_{kind}.yml").read_text())
        source = {"name": "one", "path": f"outputs/tiny/data/{file}", "adapter": rows, "licence": "our own"}
        spec["categories"] = {"steering_alignment": {"tokens": 8000, "sources": [source]}}
        (site / f"small_{kind}.yml").write_text(yaml.safe_dump(spec))
        recipe = site / f"recipes/tiny_{kind}.yml"
        recipe.write_text(recipe.read_text().replace(f"mixes/tiny_{kind}/", f"mixes/small_{kind}/"))
    slurm_site.edit(site / "recipes/tiny_sft.yml", num_epochs=1, warmup_steps=2, logging_steps=1)
    slurm_site.edit(site / "recipes/tiny_dpo.yml", warmup_steps=2)
    small = yaml.safe_load((ROOT / "launch/pipelines/tiny.yml").read_text())
    small["mixes"] = {"sft": "small_sft.yml", "dpo": "small_dpo.yml"}
    small["base"] = False
    small["evaluation"] |= {"options": ["--limit", "2"], "also": {}}
    (site / "small.yml").write_text(yaml.safe_dump(small))


def test_what_a_dry_run_writes_is_the_chain(slurm, site, base, samples):
    """submit.sh by hand: each job waits for those that its stage needs."""
    small_chain(site, base, samples)
    arguments = ("--pipeline", "small.yml", "--no-check", "--dry-run", "--", "--hold")
    said = json.loads(launch(slurm, site, *arguments).stdout)
    assert said["submitted"] == {} and not slurm.jobs()
    slurm.run("bash", "logs/pipeline/small/submit.sh", cwd=site)
    waits = slurm.run("squeue", "--noheader", "--sort=i", "--format=%i %E").stdout.splitlines()
    names = {line.split()[0]: one["stage"] for line, one in zip(waits, said["stages"], strict=True)}
    for line, one in zip(waits, said["stages"], strict=True):
        jobs = [part.partition(":")[2].partition("(")[0] for part in line.split()[1].split(",")]
        assert [names[job] for job in jobs if job] == one["needs"]


def test_the_chain_runs_to_the_report(slurm, site, base, samples):
    small_chain(site, base, samples)
    threads = {"OMP_NUM_THREADS": "1"}  # jobs share this machine's cores, of which Slurm counts 16 a node
    said = json.loads(launch(slurm, site, "--pipeline", "small.yml", "--no-check", env=threads).stdout)
    assert list(said["submitted"]) == [
        *("mix_sft", "mix_dpo", "sft", "eval_epoch_1", "select", "dpo", "merge", "eval_dpo", "report"),
    ]
    finish(slurm, 1500)
    ended = {name: slurm.job(jid)["JobState"] for name, jid in said["submitted"].items()}
    failed = [path for path in (site / "logs").glob("*.log") if "failed with exit code" in path.read_text()]
    assert set(ended.values()) == {"COMPLETED"}, f"{ended}\n{failed and failed[0].read_text()[-3000:]}"

    assert "8 packs of 1,024 tokens" in (site / f"logs/mix_small_sft-{said['submitted']['mix_sft']}.log").read_text()
    made_of = json.loads((site / "logs/pipeline/small/sft.done").read_text())["of"]
    assert {"recipes/tiny_sft.yml", "mixes/small_sft/manifest.json"} <= made_of.keys() and all(made_of.values())
    chosen = json.loads((site / "outputs/tiny/sft/select.json").read_text())
    assert (site / "outputs/tiny/sft/best").resolve() == (site / chosen["model"]).resolve()
    report = json.loads((site / "outputs/tiny/report/report.json").read_text())
    assert [one["stage"] for one in report["evaluations"]] == ["SFT", "SFT+DPO"]
    assert len(report["commands"]) == len(said["submitted"])
    again = json.loads(launch(slurm, site, "--pipeline", "small.yml", "--no-check").stdout)
    assert again["submitted"] == {}
    assert {one["state"] for one in again["stages"]} == {"complete"}
