"""What the sbatch scripts do when nodes, ranks, users and Slurm itself do what they should not: on a real Slurm."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from quick_site import QuickSite

from hermes3.files import MARKER, lock
from hermes3.mix.build import build

ROOT = Path(__file__).parents[1]
SCONTROL = shutil.which("scontrol")
ONCE = "step(0.5)\nprint('up', attempt)\nif attempt == 1: time.sleep(3600)"  # the first attempt hangs


@pytest.fixture
def site(tmp_path, slurm) -> QuickSite:
    return QuickSite(tmp_path / "site", slurm)


@pytest.mark.parametrize("script", sorted(ROOT.glob("launch/*.sbatch")), ids=lambda path: path.name)
def test_what_sbatch_reads_of_a_script(script):
    text = script.read_text()
    first = next(line for line in text.splitlines() if line and not line.startswith("#"))
    assert text.startswith("#!/usr/bin/env bash\n") and first == "set -euo pipefail"
    options = re.findall(r"^#SBATCH .*", text, re.MULTILINE)
    assert options and text.rindex(options[-1]) < text.index(first)  # after the first command they are comments
    assert not [line for line in options if "$" in line or "`" in line]  # no shell reads them
    assert {f"#SBATCH --{one}" for one in ("output=logs/%x-%j.log", "open-mode=append", "requeue")} <= {*options}
    assert all("=B:USR1@" in line for line in options if "--signal" in line)


def environment(**env: str) -> dict[str, str]:
    """Of a shell that has sourced env.sh."""
    env = {"PATH": os.environ["PATH"], "HOME": "/home/me"} | env
    printed = subprocess.check_output(["bash", "-euc", ". launch/env.sh; env -0"], cwd=ROOT, env=env, text=True)
    return dict(line.split("=", 1) for line in printed.split("\0") if line)


def test_a_value_that_is_set_wins_but_for_the_tracking_s(tmp_path):
    default = environment(TMPDIR=str(tmp_path))
    names = re.findall(r"\b([A-Z_0-9]+)=\$\{", (ROOT / "launch/env.sh").read_text())
    assert {"HF_HOME", "PYTHONUNBUFFERED", "TORCH_NCCL_DUMP_ON_TIMEOUT", "TRITON_CACHE_DIR"} < set(names) < set(default)
    mine = dict.fromkeys(names, str(tmp_path / "0"))
    assert environment(**mine, AXOLOTL_DO_NOT_TRACK="0").items() >= (mine | {"AXOLOTL_DO_NOT_TRACK": "1"}).items()
    assert default.keys() - set(names) == {"AXOLOTL_DO_NOT_TRACK", "PATH", "HOME", "TMPDIR", "PWD", "SHLVL", "_"}
    # nor are kernels loaded from a folder of another user
    cache = tmp_path / f"triton-{os.getuid()}"
    assert default["TRITON_CACHE_DIR"] == str(cache) and cache.stat().st_mode & 0o777 == 0o700
    if os.getuid() == 0:
        os.chown(cache, 65534, 65534)
        assert environment(TMPDIR=str(tmp_path))["TRITON_CACHE_DIR"] == "/home/me/.triton/cache"


# Nodes and ranks


def test_a_folder_is_trained_by_one_job_and_as_it_was_begun(slurm, site):
    """Whatever jobs are called; the recipe is edited for the next experiment, then the first job is queued again."""
    jid = site.submit(ONCE, recipe=site.recipe(seed=42))
    site.wait_log(jid, "up 1")
    other = site.submit(ONCE, "--nodes=2", "--job-name=other")
    assert site.end(other) == ("FAILED", 0)
    assert f"job {jid} trains into it already" in site.log(other).splitlines()[-1]
    site.recipe(seed=43)
    slurm.run("scontrol", "requeue", jid)
    assert site.end(jid) == ("FAILED", 1)
    assert "recipe.yml has changed: seed was 42, is 43" in site.log(jid) and "up 2" not in site.log(jid)
    assert "to train anew: mv out out.old" in site.log(jid).splitlines()[-1]
    site.recipe(seed=42)  # the claim of a job that has ended is no hindrance
    assert site.end(site.submit("", recipe=site.folder / "recipe.yml")) == ("COMPLETED", 0)


def test_each_node_has_its_rank_gpus_and_cpus_and_all_meet_on_the_first_host(slurm, site):
    """Submitted from a task of an array, whose variables Slurm hands on, and with nothing handed on to tasks."""
    (site.folder / "launch/env.sh").rename(site.folder / "launch/ours.sh")
    path = f"PATH={site.folder}/bin:{Path(sys.executable).parent}:$PATH PYTHONPATH={site.folder}"
    site.script("launch/env.sh", f". launch/ours.sh\nexport {path} HERMES3_STAMP={site.stamp}\n")
    train = "print('GPUs', os.environ['CUDA_VISIBLE_DEVICES'], 'CPUs', os.environ['SLURM_CPUS_PER_TASK'])"
    array = {"SBATCH_EXPORT": "NONE", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "1"}
    jid = site.submit(train, "--nodes=2", "--gpus-per-node=8", recipe=site.recipe(2, "h100-80gb", 8), **array)
    assert site.end(jid) == ("COMPLETED", 0), site.log(jid)
    assert site.stamp.exists()
    launched = sorted((site.folder / "torchrun.txt").read_text().splitlines())
    lines = [re.search(r"(n\d): --nnodes (\d) .*--node-rank (\d) --master-addr (\w+) ", line) for line in launched]
    assert [one.groups() for one in lines] == [("n1", "2", "0", "n1"), ("n2", "2", "1", "n1")]
    ranks = [(site.folder / f"logs/{jid}/attempt_1/rank_{rank}.log").read_text() for rank in range(2)]
    assert ranks == ["GPUs 0,1,2,3,4,5,6,7 CPUs 16\n"] * 2


# The notice of the end

UNTIL_STOPPED = """
print("up", attempt)
while attempt == 1 and not stop.exists(): time.sleep(0.1)
if attempt == 1:
    save(8)
    sys.exit(75)
"""


def test_on_notice_ranks_stop_and_the_job_goes_on(slurm, site):
    """Though slurmctld is away for a while: it is asked again."""
    away = "echo 'Unable to contact slurm controller (connect failure)' >&2; touch back; exit 1"
    site.script("bin/scontrol", f'[[ $1 != requeue || -e back ]] || {{ {away}; }}\nexec {SCONTROL} "$@"')
    jid = site.submit(UNTIL_STOPPED)
    site.wait_log(jid, "up 1")
    site.notice(jid)
    assert site.end(jid) == ("COMPLETED", 1), site.log(jid)
    log = site.log(jid)  # of both attempts: a requeue does not cut it off
    assert "attempt 1 on" in log and "ended on notice" in log and "asked again" in log and "up 2" in log
    assert not list(site.folder.glob(f"logs/{jid}/attempt_*/crash.json"))


@pytest.mark.parametrize("script", ["train", "step"])
def test_a_notice_that_comes_first_of_all_queues_a_training_again_and_ends_a_step(slurm, site, script):
    early, stop = site.folder / "early", '[[ $* != *"record begin" || -e early ]] || { touch early; sleep 3; }'
    site.script("bin/python", f'{stop}\nexec {sys.executable} "$@"')
    jid = site.submit("") if script == "train" else site.command("launch/step.sbatch", "true")
    slurm.until(early.exists, 60, "the job's first line")
    site.notice(jid)
    assert site.end(jid) == (("COMPLETED", 1) if script == "train" else ("FAILED", 0)), site.log(jid)
    assert ("notice of the end came" if script == "train" else "the time limit has come") in site.log(jid)


def test_ranks_that_do_not_stop_are_ended_in_time_for_another_attempt(slurm, site):
    """Slurm never queues a job again that its time limit has ended. Four seconds before that, says squeue here."""
    site.script("bin/squeue", "date -d '4 seconds' +%FT%T")
    jid = site.submit(ONCE)
    site.wait_log(jid, "up 1")
    site.notice(jid)
    assert site.end(jid) == ("COMPLETED", 1)
    assert "no checkpoint was written" in site.log(jid)


def test_an_evaluation_that_meets_its_time_limit_goes_on_in_another_job_and_a_step_fails(slurm, site):
    """A step would begin anew: it says so in time, as Slurm cancels what needs a stage that runs out of time."""
    wait = 'echo "attempt ${SLURM_RESTART_COUNT:-0}: $*"; [[ -n ${SLURM_RESTART_COUNT:-} ]] || sleep 100'
    site.script("bin/hermes3", wait)
    jid = site.command("launch/eval.sbatch", "m", "--suite", "tiny", stage=True)
    step = site.command("launch/step.sbatch", "hermes3", HERMES3_STAMP=str(site.folder / "other.done"))
    for job, state in ((jid, ("COMPLETED", 1)), (step, ("FAILED", 0))):
        site.wait_log(job, "attempt 0")
        site.notice(job)
        assert site.end(job) == state, site.log(job)
    text = site.log(jid)
    assert "attempt 0: eval m --suite tiny" in text and "is queued again" in text and "attempt 1" in text
    assert f'"job": "{jid}"' in site.stamp.read_text()
    assert "stage other failed" in site.log(step) and not (site.folder / "other.done").exists()


def test_vllm_runs_in_its_own_environment_or_not_at_all(slurm, site):
    """A model alone is evaluated on the paper's suite, by vLLM too."""
    paper = "--suite paper --out outputs/8b_sft-eval --backend vllm --model-args tensor_parallel_size=8"
    ran = {"m --backend vllm": "m --backend vllm", "outputs/8b_sft/": f"outputs/8b_sft/ {paper}"}
    for state, said in (("FAILED", ".venv-eval is not there"), ("COMPLETED", "vLLM has eval {}\n")):
        jobs = [site.command("--gpus-per-node=8", "launch/eval.sbatch", *line.split()) for line in ran]
        for jid, line in zip(jobs, ran.values(), strict=True):
            assert site.end(jid)[0] == state and said.format(line) in site.log(jid)
        site.script(".venv-eval/bin/hermes3", 'echo "vLLM has $*"')


PART = """#!/usr/bin/env python
import os, sys, time
from hermes3.cli import main
from hermes3.mix import read, shard
part, make = sys.argv[-5], shard.make
def make_one(chunk, path):
    make(chunk, path)
    open("up" + part[0], "w")
    time.sleep(3600)
if part in ("2/3", "3/3") and "SLURM_RESTART_COUNT" not in os.environ:
    shard.make = make_one
read.chunks.__defaults__ = (20, 10**7)
main()
"""


def test_an_array_makes_a_mix_with_a_job_that_waits_for_it_though_a_node_is_lost(slurm, site, base):
    """And though another task, whose id is the whole array's, meets its time limit: it alone is queued again."""
    for number in range(16):  # of the first file each part makes every third chunk, of the others some whole
        rows = [{"question": f"{i} and {number}?", "answer": f"It is {i + number}."} for i in range(200 >> number % 8)]
        (site.folder / f"{number:02}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    source = {"name": "s", "path": "*.jsonl", "adapter": "question_answer", "licence": "our own"}
    spec = {"name": "t", "kind": "sft", "tokenizer": str(base), "sequence_len": 64, "seed": 1}
    (site.folder / "t.yml").write_text(yaml.safe_dump(spec | {"categories": {"math": {"sources": [source]}}}))
    site.script("bin/hermes3", "")
    (site.folder / "bin/hermes3").write_text(PART)
    mix, cache = ("--cpus-per-task=1", "--exclusive", "launch/mix.sbatch", "t.yml"), site.folder / "mixes/.cache/t"

    def shards() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in cache.glob("*.arrow")}

    array = site.command("--array=1-3", *mix)
    after = site.command(f"--dependency=afterok:{array}", *mix, SLURM_ARRAY_TASK_COUNT="3")  # as from a task
    slurm.until(lambda: all((site.folder / f"up{part}").exists() for part in (2, 3)), 300, "parts 2 and 3")
    with (cache / MARKER).open("a") as users:
        assert not lock(users)  # so that no build sweeps what they have made
    site.notice(f"{array}_3")
    [node] = slurm.hosts(f"{array}_2")
    slurm.kill_node(node)
    slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    assert [site.end(f"{array}_{part}") for part in (1, 2, 3)] == [("COMPLETED", n) for n in (0, 1, 1)]
    text, made = "".join(log.read_text() for log in site.folder.glob("logs/mix-*.log")), shards()
    parts = re.findall(r"part (./3): (\d+) shards made, (\d) were there", text)
    assert [(part, there) for part, _, there in sorted(parts)] == [("1/3", "0"), ("2/3", "1"), ("3/3", "1")]
    assert sum(int(new) for _, new, _ in parts) == len(made) - 2
    assert site.end(after) == ("COMPLETED", 0) and shards() == made, site.log(after)
    alone = build(site.folder / "t.yml", site.folder / "alone", site.folder, quiet=True).manifest
    assert json.loads((site.folder / "mixes/t/manifest.json").read_text())["output"] == alone["output"]


# What a run is made of


def test_what_is_prepared_already_is_not_written_anew(slurm, site):
    """A second recipe on the same mix, whose preparation comes to the same folder and to one more."""
    (site.folder / "axolotl/cli/preprocess.py").write_text(
        "import os, sys\nto = next(a.split('=')[1] for a in sys.argv if a.startswith('--dataset-prepared-path='))\n"
        "for name in ['ours', *os.environ.get('MORE', '').split()]:\n    os.makedirs(f'{to}/{name}')\n"
        "    open(f'{to}/{name}/data.arrow', 'w').write(name)\n"
    )
    assert site.end(site.submit("")) == ("COMPLETED", 0)
    data = site.folder / "prepared/ours/data.arrow"
    before = data.stat()
    jid = site.submit("", recipe=site.recipe(learning_rate=0.001), MORE="more")
    assert site.end(jid) == ("COMPLETED", 0), site.log(jid)
    assert (data.stat().st_ino, data.stat().st_mtime) == (before.st_ino, before.st_mtime)
    names = sorted(path.name for path in (site.folder / "prepared").iterdir())
    assert len(names) == 4 and names[:2] == ["more", "ours"] and names[2].startswith("recipe-")


# Crashes


def test_a_crash_is_tried_again_but_not_the_same_at_the_same_place_and_the_mix_is_prepared_once(slurm, site):
    """The logs of an older job of the same number are set aside: its five crashes and bad node are not this one's."""
    train = "if rank == '1': time.sleep(3600)\nstep(0.5)\nraise RuntimeError(f'size mismatch at {id(job)}')"
    jid = site.submit(train, "--nodes=2", "--hold")
    for number in range(1, 6):
        older = site.folder / f"logs/{jid}/attempt_{number}"
        older.mkdir(parents=True)
        (older / "crash.json").write_text('{"kind": "RuntimeError", "message": "", "epoch": "0.9"}')
    slurm.run("scontrol", "release", jid)
    assert site.end(jid) == ("FAILED", 1)
    assert "crash 1 of at most 5" in site.log(jid) and "the same crash as before" in site.log(jid)
    assert site.log(jid).splitlines()[-1].startswith("RuntimeError: size mismatch at ")
    prepared = [path.read_text() for path in site.folder.glob(f"logs/{jid}/attempt_*/preprocess.log")]
    assert prepared == ["on n1\n"]
    assert len(list(site.folder.glob(f"logs/{jid}.*/attempt_5"))) == 1


def test_a_requeue_that_slurm_does_not_carry_out_is_no_success(slurm, site):
    site.script("bin/scontrol", f'[[ $1 == requeue ]] || exec {SCONTROL} "$@"')
    jid = site.submit("step(0.5)\nraise RuntimeError('NCCL error')", stage=True)
    assert site.end(jid) == ("FAILED", 0)
    assert "queued again" in site.log(jid) and "is trained" not in site.log(jid) and not site.stamp.exists()
    (site.folder / "axolotl/cli/preprocess.py").unlink()
    jid = site.submit("", recipe=site.recipe(seed=1, output_dir="other"))
    assert site.end(jid) == ("FAILED", 0)
    assert "preprocess.log" in site.log(jid) and "No module named axolotl.cli.preprocess" in site.log(jid)
    assert len(list((site.folder / "prepared").iterdir())) == 1  # the first recipe's


def test_a_preempted_job_has_not_crashed(slurm, site):
    jid = site.submit(ONCE, HERMES3_MAX_CRASHES="1")
    site.wait_log(jid, "up 1")
    urgent = slurm.submit("--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap", "true")
    assert slurm.wait_job(urgent)["JobState"] == "COMPLETED"
    assert site.end(jid) == ("COMPLETED", 1), site.log(jid)
    assert "attempt_1: preempted" in site.log(jid) and "before it ends" not in site.log(jid)


LAST_WORDS = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
step(0.5)
if rank == "1":
    while not Path("up").exists(): time.sleep(0.1)
    sys.exit(7)
Path("up").touch()
time.sleep(0.5)
print("last words")
raise ValueError("of rank 0")
"""


def test_a_user_s_error_fails_once_and_is_the_last_that_the_log_says(slurm, site):
    """Also when Slurm kills rank 0's step. And all ranks end: without --kill-on-bad-exit one would wait for an hour."""
    jid = site.submit(LAST_WORDS)
    assert site.end(jid) == ("FAILED", 0)
    assert "last words\n" in site.log(jid) and site.log(jid).splitlines()[-1] == "ValueError: of rank 0"
    jid = site.submit("if rank == '1': raise ValueError('lora_r: must be positive')\ntime.sleep(3600)", stage=True)
    assert site.end(jid) == ("FAILED", 0) and not site.stamp.exists()  # a stage of a pipeline that is not done
    assert "ValueError: lora_r: must be positive\n" in site.log(jid)
    assert "stage stage failed" in site.log(jid).splitlines()[-1]
