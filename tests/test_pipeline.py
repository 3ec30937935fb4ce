"""`hermes3 launch --pipeline` on a real Slurm: the chain runs to the report, a failure stops it, a rerun ends it."""

import json
from pathlib import Path
from unittest import mock

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
def stand_in(slurm, site, monkeypatch):
    """Take a chain of shell commands through the pipeline: {stage: {"run": command, "needs": [], "reads": []}}."""
    monkeypatch.chdir(site)
    monkeypatch.setattr(queue, "slurm", lambda *argv, **_: slurm.run(*argv).stdout)
    options = ["--mem=100M", "--cpus-per-task=1"]

    def of(stages: dict) -> pipeline.Submission:
        made = []
        for name, one in stages.items():
            words, leaves = ["bash", "-c", f"({one['run']}) && touch {name}.out"], Path(f"{name}.out")
            rest = [leaves, f"it_{name}", pipeline.FOLDER / f"it/{name}.done"]
            reads = [*map(Path, one.get("reads", []))]
            made.append(Stage(name, chain.STEP, words, one.get("needs", []), reads, *rest, options=options))
        return pipeline.Submission(AGAIN, pipeline.FOLDER / "it", made, queue.jobs())

    return of


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
    assert set(stand_in(stages).submit(check=False)) == set(stages)
    finish(slurm)
    assert sorted((site / "ran").read_text().split()) == ["data", "other", "train"]
    last = Path(record.read(Path("logs/pipeline/it/train.done")).log).read_text().splitlines()[-1]
    assert "stage train failed with exit code 3" in last and "score, report" in last and last.endswith(AGAIN)

    said = stand_in(stages).states
    assert [said[one].what for one in stages] == ["complete", "to run", "complete", "to run", "to run"]
    assert "ended unfinished: see logs/it_train-" in said["train"].why
    assert "was cancelled before it began" in said["report"].why

    (site / "repaired").touch()
    (site / "ran").unlink()
    stand_in(stages).write()
    slurm.run("bash", "logs/pipeline/it/submit.sh")  # by hand
    finish(slurm)
    assert (site / "ran").read_text().split() == ["train", "score", "report"]
    again = stand_in(stages)
    assert again.submit() == {} and {state.what for state in again.states.values()} == {"complete"}

    (site / "settings").write_text("2")  # as a user edits a recipe
    changed = stand_in(stages).states
    assert [changed[one].what for one in stages] == ["to run", "to run", "complete", "to run", "to run"]
    assert changed["data"].why.startswith("settings has changed since job ")

    (site / "repaired").unlink()
    stand_in(stages).submit(check=False)
    finish(slurm)
    assert stand_in(stages).states["train"].what == "to run"  # its first success is of other settings


# the rules, without Slurm

RECIPE = "{hardware: {gpu: cpu, nodes: 1, gpus_per_node: 1}, seed: 1}"


def a_stage(tmp_path: Path, name: str, needs: list[str] | None = None, **more) -> Stage:
    reads, leaves = tmp_path / f"{name}.yml", tmp_path / f"{name}.out"
    reads.write_text(RECIPE)
    stamp = Path(f"logs/{name}.done")
    return Stage(name, "launch/step.sbatch", [str(reads)], needs or [], [reads], leaves, name, stamp, **more)


class Trained:
    """A mix and a training on it in the working folder, both complete by job 7."""

    def __init__(self, folder: Path):
        (folder / "manifest.json").write_text("1")
        self.mix = a_stage(folder, "mix")
        self.sft = a_stage(folder, "sft", ["mix"], run=folder / "sft.out", inputs=[folder / "manifest.json"])
        for one in (self.mix, self.sft):
            one.leaves.mkdir()
            reads = [*map(str, one.reads + one.inputs)]
            record.write(one.stamp, record.Record(one.name, one.command, reads, [], AGAIN, 7, "a.log"))
            record.begin(one.stamp)
            record.done(one.stamp)
        assert self.what() == {"mix": "complete", "sft": "complete"}

    def chain(self, *done: str, jobs: dict | None = None) -> pipeline.Submission:
        return pipeline.Submission(AGAIN, Path("logs"), [self.mix, self.sft], jobs or {}, list(done))

    def what(self, *done: str) -> dict[str, str]:
        return {name: state.what for name, state in self.chain(*done).states.items()}


@pytest.fixture
def it(tmp_path, monkeypatch) -> Trained:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return Trained(tmp_path)


def edit(one: Stage) -> None:
    one.reads[0].write_text(RECIPE.replace("seed: 1", "seed: 2"))


def test_a_training_is_not_taken_up_from_the_checkpoints_of_another(it):
    edit(it.sft)
    assert it.what()["sft"] == "to run"  # no checkpoint is in the way
    (it.sft.run / "checkpoint-10").mkdir()
    with pytest.raises(ValueError, match=r"sft: .*sft.yml has changed since job 7.*mv .*sft.out .*--done sft"):
        it.what()
    assert it.what("sft")["sft"] == "complete"
    it.sft.reads[0].write_text(RECIPE)
    edit(it.mix)
    with pytest.raises(ValueError, match="mix, which it needs, runs again"):
        it.what()
    with pytest.raises(ValueError, match="--done sfd: no such stage; there are mix, sft"):
        it.what("sfd")


def test_an_unfinished_training_goes_on_unless_what_it_is_made_of_has_changed(it):
    """Its own record says so: a remark in the recipe is no change."""
    start.hold(it.sft.reads[0], start.read(it.sft.reads[0]), it.sft.run)
    (it.sft.run / "checkpoint-10").mkdir()
    it.sft.stamp.unlink()
    it.sft.reads[0].write_text(f"# a remark\n{RECIPE}")
    assert it.what()["sft"] == "to run"
    edit(it.mix)
    with pytest.raises(ValueError, match=r"sft: mix, which it needs, runs again.*mv .*sft.out .*--done mix"):
        it.what()
    assert it.what("mix")["sft"] == "to run"
    edit(it.sft)
    with pytest.raises(ValueError, match=r"sft.yml has changed: seed was 1, is 2.*mv .*sft.out .*put that back"):
        it.what("mix")


def test_a_stage_is_taken_up_for_what_it_was_made_of_what_it_left_and_what_the_queue_has(it):
    it.sft.inputs[0].write_text("2")
    assert it.chain().states["sft"].why == f"{it.sft.inputs[0]} has changed since job 7 began"
    it.sft.stamp.unlink()
    jobs = {"sft": queue.Job(9, "PENDING", "Dependency")}
    assert it.chain(jobs=jobs).states["sft"] == ("in the queue", "job 9 PENDING (Dependency)", 9)
    assert [*it.chain(jobs=jobs).lines()] == []
    edit(it.mix)
    with pytest.raises(ValueError, match="sft is in the queue as job 9, and mix.*mix.yml has changed.*scancel 9"):
        it.chain(jobs=jobs)
    it.mix.leaves.rmdir()
    assert it.chain().states["mix"].why.endswith("mix.out is gone")


def test_a_refused_submission_leaves_no_half_chain(it, monkeypatch):
    """Nor one that sbatch takes and the cluster cannot run: it is asked before anything is submitted."""
    for one in (it.mix, it.sft):
        edit(one)
    lines, cancelled = [], []

    def submit(line: list[str]) -> int:
        if not lines:  # a launch may be killed here
            assert record.read(it.mix.stamp).job is None and not it.mix.stamp.exists()
        if "--dependency=afterok:41" in line:
            raise UserError("sbatch: error: invalid partition specified: none")
        lines.append(line)
        return 41

    def test(line: list[str]) -> None:
        if it.sft.reads[0].name in line[-1]:
            raise UserError("Requested node configuration is not available")

    for name, stand_in in {"submit": submit, "test": test, "slurm": lambda *argv: cancelled.append(argv)}.items():
        monkeypatch.setattr(queue, name, stand_in)
    with pytest.raises(ValueError, match="stage sft was refused; nothing is submitted(.|\n)*Requested node"):
        it.chain().submit()
    assert lines == []
    with pytest.raises(ValueError, match="stage sft was refused; the 1 before it are cancelled(.|\n)*partition.*none"):
        it.chain().submit(check=False)
    assert len(lines) == 1 and cancelled == [("scancel", "41")]


@pytest.mark.parametrize("back", [False, True])
def test_a_stage_is_made_of_what_its_job_has_read(it, back, monkeypatch):
    """The file is edited while the job waits, and put back once it runs; or edited while it runs."""
    if back:
        edit(it.mix)
    record.begin(it.mix.stamp)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    it.mix.reads[0].write_text(RECIPE) if back else edit(it.mix)
    record.begin(it.mix.stamp)  # queued again, it goes on where it was
    record.done(it.mix.stamp)
    assert it.what()["mix"] == "to run"


def test_a_file_system_without_flock_is_said_and_no_hindrance(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fcntl.flock", mock.Mock(side_effect=[OSError("none"), BlockingIOError]))
    with pipeline.alone(tmp_path):
        assert "cannot be locked here" in capsys.readouterr().err
    with pytest.raises(ValueError, match="wait for it"), pipeline.alone(tmp_path):
        pass


def test_a_mix_is_complete_when_it_was_built_from_its_spec_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec, manifest = tmp_path / "one.yml", tmp_path / "mixes/one/manifest.json"
    spec.write_text((ROOT / "data_mixes/tiny_dpo.yml").read_text())
    mix = Stage("mix_dpo", "launch/mix.sbatch", [], [], [spec], manifest, "mix_one", Path("one.done"), spec=spec)

    def what() -> tuple[str, str]:
        return pipeline.Submission(AGAIN, Path("logs"), [mix], {}).states["mix_dpo"][:2]

    assert what() == ("to run", f"{manifest.parent} is not built")
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"spec": specs.load(spec).model_dump(mode="json"), "lock": None}))
    assert what()[0] == "complete"
    spec.write_text(spec.read_text().replace("seed: 42", "seed: 43"))
    assert what() == ("to run", f"{spec} has changed since {manifest.parent} was built")


@pytest.mark.parametrize("name", ["tiny", "8b", "70b", "405b"])
def test_every_pipeline_names_what_is_there(name, tmp_path, monkeypatch):
    """Scripts, suites and recipes; each stage stands behind those that it needs, and all lead to the report."""
    stages = chain.stages(chain.load(name)[1], Path("logs/pipeline/it"))
    names = [one.name for one in stages]
    assert all(names.index(need) < names.index(one.name) for one in stages for need in one.needs)
    assert {*names} - {need for one in stages for need in one.needs} == {"report"}
    assert [path for one in stages for path in [Path(one.script), *one.reads] if not path.exists()] == []
    assert {f"eval_epoch_{n}" for n in range(1, 5)} == {one for one in names if one.startswith("eval_epoch")}
    # alignment of the last model, where the report finds it, and once its other scores are in
    last, after = (next(one for one in stages if one.name == name) for name in ("eval_dpo", "eval_alignment"))
    assert after.arguments[:3] == [last.arguments[0], "--suite", "alignment"] and after.needs == [last.name]
    assert after.leaves == last.leaves / "alignment" and str(after.leaves) in after.arguments
    # the paper measured its 405B in FP8
    copies = {one.name: one for one in stages if "quantize" in one.arguments}
    assert copies.keys() == ({"fp8_sft", "fp8_dpo"} if name == "405b" else set())
    assert not copies or last.arguments[0] == str(copies["fp8_dpo"].leaves) and last.needs == ["fp8_dpo"]
    # what evaluations run in is missed before anything is submitted
    evaluations = [one for one in stages if one.script == chain.EVAL]
    monkeypatch.chdir(tmp_path)
    lacks = [text for text in chain.missing(evaluations) if "no .venv-eval; bash launch/install.sh" in text]
    assert len(lacks) == (name != "tiny")  # once for all of them
    Path(".venv-eval").mkdir()
    assert not any(".venv-eval" in text for text in chain.missing(evaluations))


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
        chain.stages(chain.load(str(path))[1], Path("logs/pipeline/it"))


# the chain itself


def test_the_chain_runs_to_the_report(slurm, site, base, samples):
    slurm_site.small_chain(site, base, samples)
    threads = {"OMP_NUM_THREADS": "1"}  # jobs share this machine's cores, of which Slurm counts 16 a node
    said = json.loads(launch(slurm, site, "--pipeline", "small.yml", "--no-check", env=threads).stdout)
    assert " ".join(said["submitted"]) == "mix_sft mix_dpo sft eval_epoch_1 select dpo merge eval_dpo report"
    finish(slurm, 1500)
    ended = {name: slurm.job(jid)["JobState"] for name, jid in said["submitted"].items()}
    failed = [path for path in (site / "logs").glob("*.log") if "failed with exit code" in path.read_text()]
    assert set(ended.values()) == {"COMPLETED"}, f"{ended}\n{failed and failed[0].read_text()[-3000:]}"

    assert "8 per epoch, 8 in all" in (site / f"logs/mix_small_sft-{said['submitted']['mix_sft']}.log").read_text()
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
