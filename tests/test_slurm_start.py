"""May a job train, what its run is made of, and how Slurm is asked: with programs of our own in Slurm's place."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from hermes3.slurm import queue, start
from hermes3.slurm.record import STAMP
from hermes3.slurm.submit import missing
from hermes3.train.checkpoints import COMPLETE, UNIVERSAL

CHANGES = yaml.safe_load(Path(__file__).with_name("made_of.yml").read_text())


@pytest.fixture
def slurm_is(tmp_path, monkeypatch):
    """Put a program in the place of one of Slurm's, which notes how it is called in `asked`; nobody waits."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(queue.time, "sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)

    def put(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/bash\necho "$*" >>{tmp_path}/asked\n{script}\n')
        path.chmod(0o755)

    return put


# what a run is made of


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A recipe with its mix and base, and a run of it that job 7 has begun and that has a checkpoint."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.chdir(tmp_path)
    for folder in ("mix/train", "base"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "mix/manifest.json").write_text('{"output": {"sha256": "1f"}, "built": "monday"}')
    (tmp_path / "base/model.safetensors").write_bytes(bytes(3_000_000))
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 3}}')
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    recipe = {"hardware": {"gpu": "cpu", "nodes": 4, "gpus_per_node": 1}, "gradient_accumulation_steps": 2}
    recipe |= {"learning_rate": 7.0e-6, "base_model": "base", "output_dir": "out", "chat_template_jinja": "chat.jinja"}
    recipe |= {"datasets": [{"path": "mix/train"}], "deepspeed": "zero.json", "dataset_prepared_path": "mix/prepared"}
    (tmp_path / "r.yml").write_text(yaml.safe_dump(recipe))
    hold(tmp_path)
    (tmp_path / "out/checkpoint-8").mkdir()
    return tmp_path


def hold(folder: Path) -> None:
    start.hold(folder / "r.yml", start.read(folder / "r.yml"), folder / "out")


def edit(folder: Path, keys: dict | None = None, weights: int | None = None, remark: str = "", **files: str) -> None:
    """As tests/made_of.yml says."""
    text = yaml.safe_dump(start.read(folder / "r.yml") | (keys or {}))
    for name, content in files.items() | {("r.yml", f"# {remark}\n{text}")}:
        (folder / name).unlink() if content is None else (folder / name).write_text(content)
    if weights is not None:
        with (folder / "base/model.safetensors").open("r+b") as file:
            file.seek(weights)
            file.write(b"other" * 30_000)


@pytest.mark.parametrize(("changes", "line"), CHANGES["refused"], ids=str)
def test_a_run_goes_on_with_what_it_was_begun_or_not_at_all(run, monkeypatch, changes, line):
    hold(run)
    edit(run, **changes)
    for job in ("7", "8"):  # queued again, submitted anew
        monkeypatch.setenv("SLURM_JOB_ID", job)
        with pytest.raises(ValueError, match=r"begun with something else:(.|\n)*mv .*out .*out.old") as error:
            hold(run)
        assert line in str(error.value)
    # a launch says so before it waits for nodes
    assert any(line in text for text in missing(run / "r.yml", start.read(run / "r.yml")))


@pytest.mark.parametrize("changes", CHANGES["free"], ids=str)
def test_what_a_run_may_change_is_not_looked_at(run, changes):
    edit(run, **changes)
    hold(run)


def test_without_a_checkpoint_another_job_begins_anew(run, monkeypatch, capsys):
    (run / "out/checkpoint-8").rmdir()
    edit(run, {"learning_rate": 1.0e-3})
    with pytest.raises(ValueError, match="learning_rate"):
        hold(run)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    hold(run)
    assert json.loads((run / "out/made_of.json").read_text())["job"] == "8"
    weights = (run / "base/model.safetensors").rename(run / "elsewhere")  # the mount is lost on this node
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    hold(run)
    weights.rename(run / "base/model.safetensors")
    hold(run)  # another attempt, on a node that has it
    (run / "out/made_of.json").unlink()
    (run / "out/checkpoint-8").mkdir()
    hold(run)
    assert "has checkpoints and no made_of.json" in capsys.readouterr().err


@pytest.mark.parametrize(("counted", "gpus"), [("gpu:h100:8", ["--gpus-per-node=8"]), ("(null)", [])])
def test_a_job_of_another_size_submits_itself_anew(slurm_is, run, monkeypatch, capsys, counted, gpus):
    """With what Slurm knows of it, and GPUs where it counts them: else the preflight does. A stage is refused, as those
    behind it wait for its id; what sbatch says of a job in a job is shown, with the line to type."""
    edit(run, {"hardware": {"gpu": "h100-80gb", "nodes": 2, "gpus_per_node": 8}})
    for name, value in {"NNODES": "1", "JOB_NAME": "r", "JOB_PARTITION": "p"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    slurm_is("sinfo", f"echo '{counted}'")
    slurm_is("sbatch", "echo 'sbatch: error: no jobs from jobs' >&2; exit 1")
    slurm_is("scontrol", "echo 'JobId=7 ArrayTaskId=0'")
    with pytest.raises(ValueError, match="submit it without --array"):
        start.start(run / "r.yml")
    slurm_is("scontrol", "echo 'JobId=7 Partition=p QOS=(null) TimeLimit=33 Reservation=ours ExcNodeList=n2'")
    with monkeypatch.context() as stage:
        stage.setenv(STAMP, "stage.done")
        with pytest.raises(ValueError, match=r"is for 2 nodes of 8 .*, this job has 1 nodes.* wait for this"):
            start.start(run / "r.yml")
    with pytest.raises(ValueError, match="no jobs from jobs(.|\n)*a site may forbid it to jobs"):
        start.start(run / "r.yml")
    line = ["--nodes=2", "--job-name=r", *gpus, "--partition=p", "--time=33", "--reservation=ours", "--exclude=n2"]
    assert " ".join([*line, "launch/train.sbatch"]) in capsys.readouterr().err
    del os.environ[start.RESIZED]


def test_another_number_of_ranks_asks_for_a_conversion_first(run, capsys):
    """A launch, and a job, of a run that two ranks began under ZeRO-3, for its recipe's four."""
    parts = run / "out/checkpoint-8/global_step8"
    parts.mkdir()
    (parts.parent / COMPLETE).write_text("{}")
    for rank in range(2):
        (parts / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    wrong = "out/checkpoint-8: 2 ranks saved it, and 4 are to go on; run `hermes3 resize out/checkpoint-8` first"
    assert any(wrong in text for text in missing(Path("r.yml"), start.read(run / "r.yml")))
    (parts.parent / UNIVERSAL).mkdir()
    edit(run, {"hardware": {"gpu": "cpu", "nodes": 8, "gpus_per_node": 1}, "gradient_accumulation_steps": 1})
    hold(run)
    assert "hardware is {'gpu': 'cpu', 'nodes': 8" in capsys.readouterr().err


# one training per output_dir


@pytest.mark.parametrize("before", [[], ["5"], ["5", "6"]])
def test_of_jobs_that_start_together_one_has_the_claim(tmp_path, monkeypatch, before):
    """Jobs 5 and 6 have ended. Each of the new ones looks at the queue while the others do."""
    for number, job in enumerate(before):
        (tmp_path / f".job{f'.{number}' if number else ''}").symlink_to(job)
    together = threading.Barrier(8, timeout=20)
    monkeypatch.setattr(start, "_active", lambda job: job not in ("5", "6") or bool(together.wait() and 0))

    def compete(job: str) -> str | None:
        try:
            return start.claim(tmp_path, job)
        except ValueError as error:
            return str(error)

    jobs = [f"{job}" for job in range(10, 18)]
    with ThreadPoolExecutor(8) as pool:
        outcomes = dict(zip(jobs, pool.map(compete, jobs), strict=True))
    (winner,) = [job for job, refused in outcomes.items() if not refused]
    assert all(f"job {winner} trains into it already" in refused for refused in outcomes.values() if refused)


# how Slurm is asked


def test_a_controller_that_is_away_is_asked_again(slurm_is, tmp_path, monkeypatch, capsys):
    """Also for a step that it has not made; but that a rank cannot connect to another one is an answer."""
    away = "Unable to contact slurm controller (connect failure)"
    counted = f"(($(wc -l <{tmp_path}/asked) > 3)) && echo RUNNING && exit 0\n"
    slurm_is("squeue", f"{counted} echo '{away}' >&2; exit 1")
    assert start._active("7")
    assert capsys.readouterr().err.count("asked again") == 3
    for name in ("SLURM_JOB_ID", "SLURM_CPUS_ON_NODE"):
        monkeypatch.setenv(name, "7")
    unmade = f"srun: error: Unable to create step for job 7: {away}"
    slurm_is("srun", f"[[ -e again ]] && echo ok && exit 0; touch again; echo '{unmade}' >&2; exit 1")
    assert queue.Srun([]).python(["n1"], [])[:2] == (0, "ok\n")
    slurm_is("srun", "echo 'gloo: connect failure' >&2; exit 3")
    assert queue.Srun([]).python(["n1"], [])[0] == 3
    for words in ("Requested operation is presently disabled", "Socket timed out on send/recv"):
        (tmp_path / "asked").unlink()
        slurm_is("sbatch", f"echo '{words}' >&2; exit 1")
        with pytest.raises(ValueError, match=words):
            queue.slurm("sbatch", "a.sbatch")
        assert (tmp_path / "asked").read_text() == "a.sbatch\n"  # a job that may be there is not submitted twice


def test_what_a_site_or_a_user_has_set_changes_nothing(slurm_is, monkeypatch):
    """A greeting before the job's id; variables that would hide jobs, or keep them from being queued again."""
    for name in ("SQUEUE_STATES", "SQUEUE_PARTITION", "SBATCH_EXPORT", "SBATCH_NO_REQUEUE", "SBATCH_ARRAY_INX"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    slurm_is("squeue", "env | grep ^SQUEUE; true")
    assert queue.slurm("squeue") == ""
    slurm_is("sbatch", "env | grep ^SBATCH; true")
    assert queue.slurm("sbatch") == "SBATCH_PARTITION=gpu\n"
    with pytest.raises(ValueError, match="no job's id"):
        queue.submit(["sbatch"])
    slurm_is("sbatch", "echo '--> Welcome to machine 3'; echo 'login: ok'; echo '41;lab'")
    assert queue.submit(["sbatch", "--parsable", "a.sbatch"]) == 41
    slurm_is("sbatch", "echo 'sbatch: error: Invalid generic resource (gres) specification' >&2; exit 1")
    with pytest.raises(ValueError, match="-- --gpus-per-node=0"):
        queue.test(["sbatch", "--gpus-per-node=8", "a.sbatch"])


def test_bad_nodes_are_added_to_those_that_were_left_out_already(slurm_is, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(queue.signal, "signal", lambda *_: None)
    (tmp_path / "logs/7").mkdir(parents=True)
    (tmp_path / "logs/7/bad_nodes").write_text("n3\tshared: gone\n")
    fields = "JobId=7 ExcNodeList=n[3,9] ReqNodeList=$(cat wanted 2>/dev/null || echo '(null)')"
    names = """echo "$*" | grep -o '[0-9],*' | sed 's/^/n/; s/,//' """
    slurm_is("scontrol", f'[[ $* == *hostnames* ]] && {names} || echo "{fields}"')
    assert "without n3,n9;" in queue.requeue()
    done = [line for line in (tmp_path / "asked").read_text().splitlines() if "show" not in line]
    assert done == ["requeue 7", "update JobId=7 ExcNodeList=n3,n9"]
    (tmp_path / "wanted").write_text("n[2,3]")
    with pytest.raises(ValueError, match=r"n3: bad, and asked for by name \(--nodelist\)"):
        queue.requeue()
