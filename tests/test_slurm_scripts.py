"""What the sbatch scripts do when nodes, ranks, users and Slurm itself do what they should not: on a real Slurm."""

import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest
from quick_site import QuickSite

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(ROOT.glob("launch/*.sbatch"))
BATCH = re.compile(r"^#SBATCH .*", re.MULTILINE)


@pytest.fixture
def site(tmp_path, slurm) -> QuickSite:
    return QuickSite(tmp_path / "site", slurm)


# The lines that sbatch reads


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_sbatch_reads_of_a_script(script):
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    first = next(line for line in text.splitlines() if line and not line.startswith("#"))
    assert first == "set -euo pipefail"
    options = BATCH.findall(text)
    assert options and text.rindex(options[-1]) < text.index(first)  # after the first command they are comments
    assert not [line for line in options if "$" in line or "`" in line]  # no shell reads them
    assert "#SBATCH --output=logs/%x-%j.log" in options
    assert "#SBATCH --open-mode=append" in options and "#SBATCH --requeue" in options
    assert all("=B:USR1@" in line for line in options if "--signal" in line)


def test_the_log_folder_is_part_of_the_repository():
    tracked = subprocess.run(["git", "ls-files", "logs"], cwd=ROOT, text=True, capture_output=True, check=True)
    assert tracked.stdout.split() == ["logs/.gitignore"]


# What every job needs


def environment(**env: str) -> dict[str, str]:
    """Of a shell that has sourced env.sh."""
    env = {"PATH": os.environ["PATH"], "HOME": "/home/me"} | env
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", ". launch/env.sh; env -0"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        check=True,
    )
    return dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if line)


def test_a_value_that_is_set_wins_but_for_the_tracking_s(tmp_path):
    default = environment(TMPDIR=str(tmp_path))
    names = re.findall(r"\b([A-Z_0-9]+)=\$\{", (ROOT / "launch/env.sh").read_text())
    assert {"HF_HOME", "PYTHONUNBUFFERED", "TORCH_NCCL_DUMP_ON_TIMEOUT", "TRITON_CACHE_DIR"} < set(names) < set(default)
    mine = dict.fromkeys(names, str(tmp_path / "0"))
    assert environment(**mine, AXOLOTL_DO_NOT_TRACK="0").items() >= (mine | {"AXOLOTL_DO_NOT_TRACK": "1"}).items()
    assert default.keys() - set(names) == {"AXOLOTL_DO_NOT_TRACK", "PATH", "HOME", "TMPDIR", "PWD", "SHLVL", "_"}


def test_kernels_are_not_loaded_from_a_folder_of_another_user(tmp_path):
    cache = tmp_path / f"triton-{os.getuid()}"
    assert environment(TMPDIR=str(tmp_path))["TRITON_CACHE_DIR"] == str(cache)
    assert cache.stat().st_mode & 0o777 == 0o700
    if os.getuid():
        pytest.skip("needs root, to give a folder away")
    os.chown(cache, 65534, 65534)
    assert environment(TMPDIR=str(tmp_path))["TRITON_CACHE_DIR"] == "/home/me/.triton/cache"


# Nodes and ranks


def test_an_allocation_of_another_size_submits_itself_anew(slurm, site):
    train = "print('GPUs', os.environ['CUDA_VISIBLE_DEVICES'], 'CPUs', os.environ['SLURM_CPUS_PER_TASK'])"
    first = site.submit(train, "--time=33", "--nodes=1", recipe=site.recipe(2, "h100-80gb", 8))
    assert site.end(first) == ("COMPLETED", 0)
    assert site.end(first + 1) == ("COMPLETED", 0), site.log(first)
    job = slurm.job(first + 1)
    assert (job["NumNodes"], job["TimeLimit"]) == ("2", "00:33:00")
    ranks = [(site.folder / f"logs/{first + 1}/attempt_1/rank_{rank}.log").read_text() for rank in range(2)]
    assert ranks == ["GPUs 0,1,2,3,4,5,6,7 CPUs 16\n"] * 2
    assert not (site.folder / f"logs/{first}").exists()


def test_what_slurm_knows_of_an_allocation_goes_with_it(slurm, site):
    """And what it does not know, the log says is lost."""
    user = pwd.getpwuid(os.getuid()).pw_name
    slurm.run("scontrol", "create", "reservation=ours", "starttime=now", "duration=60", "nodes=ALL", f"users={user}")
    try:
        first = site.submit("", "--nodes=1", "--exclude=n2,n4", "--reservation=ours", "--nice=7")
        assert site.end(first) == ("COMPLETED", 0)
        assert site.end(first + 1) == ("COMPLETED", 0), site.log(first)
        job = slurm.job(first + 1)
    finally:
        slurm.run("scontrol", "delete", "reservation=ours")
    assert (job["Reservation"], job["ExcNodeList"]) == ("ours", "n[2,4]")
    assert "any other option is lost" in site.log(first)


def test_a_stage_of_another_size_fails(slurm, site):
    """Those behind it wait for its id, not for that of a job which it would submit."""
    stamp = site.folder / "stage.done"
    jid = site.submit("", "--nodes=1", HERMES3_STAMP=str(stamp))
    assert site.end(jid) == ("FAILED", 0) and not stamp.exists()
    assert "is for 2 nodes of 1 (cpu), this stage has 1 nodes" in site.log(jid)
    assert "stage stage failed with exit code 1" in site.log(jid).splitlines()[-1]
    assert slurm.run("scontrol", "show", "job", jid + 1, check=False).returncode


def test_what_sbatch_says_of_an_allocation_of_another_size_is_in_the_log(slurm, site):
    refuses = "echo 'sbatch: error: no jobs from jobs' >&2; exit 1"
    site.script("bin/sbatch", f'#!/bin/bash\n[[ -n ${{HERMES3_RESIZED:-}} ]] || exec /usr/bin/sbatch "$@"\n{refuses}\n')
    jid = site.submit("", "--nodes=1")
    assert site.end(jid) == ("FAILED", 0)
    assert "\nsbatch: error: no jobs from jobs\n" in site.log(jid) and "--nodes=2" in site.log(jid)


def test_gpus_that_slurm_does_not_count_are_not_asked_for(slurm, site):
    """The preflight counts them."""
    site.script("bin/sinfo", "#!/bin/bash\necho '(null)'\n")
    (site.folder / "launch/env.sh").unlink()
    site.script("launch/env.sh", f"unset SLURM_GPUS_ON_NODE\n. {ROOT}/launch/env.sh\n")
    recipe = site.recipe(2, "h100-80gb", 8)
    assert site.end(site.submit("", recipe=recipe)) == ("COMPLETED", 0)
    first = site.submit("", "--nodes=1", recipe=recipe)
    assert site.end(first) == ("COMPLETED", 0)
    assert site.end(first + 1) == ("COMPLETED", 0), site.log(first)
    assert "TresPerNode" not in slurm.job(first + 1) and "gpus-per-node" not in site.log(first)


def test_two_jobs_do_not_train_into_one_folder(slurm, site):
    """Whatever they are called; one that has ended is no hindrance."""
    jid = site.submit("step(0.5)\nprint('up')\nwhile not os.path.exists('go'): time.sleep(0.1)")
    site.wait_log(jid, "up")
    recipe = site.recipe()
    train = (site.folder / "axolotl/cli/train.py").read_text()
    other = site.submit(train, "--nodes=2", "--job-name=train", recipe=recipe)
    assert site.end(other) == ("FAILED", 0)
    assert f"job {jid} trains into it already" in site.log(other).splitlines()[-1]
    (site.folder / "go").touch()
    assert site.end(jid) == ("COMPLETED", 0), site.log(jid)
    assert site.end(site.submit("")) == ("COMPLETED", 0)


def test_an_array_is_refused(slurm, site):
    jid = site.submit("", "--nodes=2", "--array=0")
    assert site.end(jid)[0] == "FAILED"
    (log,) = site.folder.glob("logs/train-*.log")
    assert "--array" in log.read_text().splitlines()[-1]


def test_each_node_has_its_rank_and_all_meet_on_the_first_host(slurm, site):
    stamp = site.folder / "stage.done"
    jid = site.submit("", HERMES3_STAMP=str(stamp))
    assert site.end(jid) == ("COMPLETED", 0), site.log(jid)
    assert stamp.exists()
    launched = sorted((site.folder / "torchrun.txt").read_text().splitlines())
    found = [re.search(r"(n\d): --nnodes (\d) .*--node-rank (\d) --master-addr (\w+) ", line) for line in launched]
    assert [one.groups() for one in found] == [("n1", "2", "0", "n1"), ("n2", "2", "1", "n1")]


# The notice of the end


UNTIL_STOPPED = """
step(0.5)
print("up", attempt)
if attempt == 1:
    while not stop.exists(): time.sleep(0.1)
    sys.exit(75)
"""


def test_on_notice_ranks_stop_and_the_job_goes_on(slurm, site):
    jid = site.submit(UNTIL_STOPPED)
    site.wait_log(jid, "up 1")
    slurm.run("scancel", "--batch", "--signal=USR1", jid)
    assert site.end(jid) == ("COMPLETED", 1)
    log = site.log(jid)  # of both attempts: a requeue does not cut it off
    assert "attempt 1 on" in log and "ended on notice" in log and "up 2" in log
    assert not list(site.folder.glob(f"logs/{jid}/attempt_*/crash.json"))


def test_a_command_that_its_time_limit_will_end_says_so_in_time(slurm, site):
    """Slurm cancels what needs a stage that runs out of time."""
    stamp = site.folder / "stage.done"
    python = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    wait = ("bash", "-c", "echo up; until [ -e go ]; do sleep 0.1; done")
    env = {"HERMES3_STAMP": str(stamp), "PATH": python}
    jid = slurm.submit("--job-name=train", "launch/step.sbatch", *wait, cwd=site.folder, env=env)
    site.wait_log(jid, "up")
    slurm.run("scancel", "--batch", "--signal=USR1", jid)
    assert site.end(jid) == ("FAILED", 0) and not stamp.exists()
    assert "stage stage failed" in site.log(jid)


def test_ranks_that_do_not_stop_are_ended_in_time_for_another_attempt(slurm, site):
    """Slurm never queues a job again that its time limit has ended. Ten seconds before that, says squeue here."""
    site.script("bin/squeue", "#!/bin/bash\ndate -d '10 seconds' +%FT%T\n")
    jid = site.submit("step(0.5)\nprint('up', attempt)\nif attempt == 1: time.sleep(3600)")
    site.wait_log(jid, "up 1")
    slurm.run("scancel", "--batch", "--signal=USR1", jid)
    assert site.end(jid) == ("COMPLETED", 1)


# Crashes


def test_a_crash_is_tried_again_but_not_the_same_at_the_same_place_and_the_mix_is_prepared_once(slurm, site):
    jid = site.submit("if rank == '1': time.sleep(3600)\nstep(0.5)\nraise RuntimeError(f'size mismatch at {id(job)}')")
    assert site.end(jid) == ("FAILED", 1)
    assert "the same crash as before" in site.log(jid)
    assert site.log(jid).splitlines()[-1].startswith("RuntimeError: size mismatch at ")
    prepared = [path.read_text() for path in site.folder.glob(f"logs/{jid}/attempt_*/preprocess.log")]
    assert prepared == ["on n1\n"]


def test_a_user_s_error_ends_all_ranks_and_fails_once_with_its_message_last(slurm, site):
    """Without --kill-on-bad-exit the other rank would wait for an hour."""
    stamp = site.folder / "stage.done"
    train = "if rank == '1': raise ValueError('lora_r: must be positive')\ntime.sleep(3600)"
    jid = site.submit(train, HERMES3_STAMP=str(stamp))
    assert site.end(jid) == ("FAILED", 0) and not stamp.exists()  # a stage of a pipeline that is not done
    log = site.log(jid)
    assert "ValueError: lora_r: must be positive\n" in log and "stage stage failed" in log.splitlines()[-1]


def test_a_recipe_that_cannot_be_read_fails_with_its_message_last(slurm, site):
    recipe = site.recipe()
    recipe.write_text("hardware: {gpu: cpu, nodes: two}\n")
    jid = site.submit("", recipe=recipe)
    assert site.end(jid) == ("FAILED", 0)
    assert site.log(jid).splitlines()[-1].startswith(f"{recipe}: hardware.nodes: ")


def test_a_failed_launch_is_tried_again(slurm, site):
    """Slurm does not, when srun has ended before the lost node is noticed: the job is FAILED."""
    site.script(
        "bin/srun",
        '#!/bin/bash\n[[ -n ${SLURM_RESTART_COUNT:-} || $* != *torchrun* ]] && exec /usr/bin/srun "$@"\n'
        "echo 'srun: error: Application launch failed' >&2; exit 141\n",
    )
    jid = site.submit("")
    assert site.end(jid) == ("COMPLETED", 1), site.log(jid)
    assert "no rank has started" in site.log(jid)


def test_a_node_lost_while_ranks_are_launched(slurm, site):
    site.script("launch/preflight.sh", "#!/bin/bash\ntouch ready\nuntil [ -e go ]; do sleep 0.1; done\n")
    jid = site.submit("")
    slurm.until((site.folder / "ready").exists, 60, "the preflight")
    slurm.kill_node("n2")
    (site.folder / "go").touch()
    slurm.run("scontrol", "update", "nodename=n2", "state=down", "reason=power")
    assert site.end(jid) == ("COMPLETED", 1), site.log(jid)
    assert "n2" not in slurm.run("scontrol", "show", "hostnames", slurm.job(jid)["NodeList"]).stdout.split()


def test_a_job_that_its_preflight_has_queued_again_trains_without_the_bad_node(slurm, site):
    again = "scontrol requeue $SLURM_JOB_ID; scontrol update JobId=$SLURM_JOB_ID ExcNodeList=n2; exit 3"
    first = '[[ -z ${SLURM_RESTART_COUNT:-} ]] || exit 0; trap "" TERM'
    site.script("launch/preflight.sh", f"#!/bin/bash\n{first}; {again}\n")
    jid = site.submit("step(0.5)")
    assert site.end(jid) == ("COMPLETED", 1), site.log(jid)
    assert "n2" not in slurm.run("scontrol", "show", "hostnames", slurm.job(jid)["NodeList"]).stdout.split()
    assert not list(site.folder.glob(f"logs/{jid}/attempt_*/crash.json"))


def test_a_requeue_that_slurm_does_not_carry_out_is_no_success(slurm, site):
    """Nor waited for any longer than ten minutes, for which the stand-in of sleep does not wait."""
    site.script("bin/scontrol", '#!/bin/bash\n[[ $1 == requeue ]] || exec /usr/bin/scontrol "$@"\n')
    site.script("bin/sleep", "#!/bin/bash\n")
    stamp = site.folder / "stage.done"
    jid = site.submit("step(0.5)\nraise RuntimeError('NCCL error')", HERMES3_STAMP=str(stamp))
    assert site.end(jid) == ("FAILED", 0)
    assert "queued again" in site.log(jid) and "is trained" not in site.log(jid) and not stamp.exists()
    (site.folder / "axolotl/cli/preprocess.py").write_text("raise RuntimeError('killed')\n")
    for prepared in (site.folder / "prepared").iterdir():
        prepared.unlink()
    assert site.end(site.submit("")) == ("FAILED", 0)
    assert not list((site.folder / "prepared").iterdir())


def test_ranks_that_slurm_ends_are_no_fault_of_the_run(slurm, site):
    """As it does before it preempts a job."""
    jid = site.submit("step(0.5)\nprint('up', attempt)\nif attempt == 1: time.sleep(3600)")
    site.wait_log(jid, "up 1")
    slurm.run("scancel", "--signal=TERM", jid)
    assert site.end(jid) == ("COMPLETED", 1), site.log(jid)


def test_a_preempted_job_has_not_crashed(slurm, site):
    jid = site.submit("step(0.5)\nprint('up', attempt)\nif attempt == 1: time.sleep(3600)", HERMES3_MAX_CRASHES="1")
    site.wait_log(jid, "up 1")
    urgent = slurm.submit("--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap", "true")
    assert slurm.wait_job(urgent)["JobState"] == "COMPLETED"
    assert site.end(jid) == ("COMPLETED", 1), site.log(jid)
    assert "attempt_1: preempted" in site.log(jid) and "before it ends" not in site.log(jid)


def test_rank_0_s_last_words_are_in_the_job_s_log(slurm, site):
    """Also when Slurm kills its step: what it has written is in its file, and the log shows that to the end."""
    train = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nstep(0.5)\nif rank == '1': sys.exit(7)\n"
    train += "time.sleep(1)\nprint('last words')\nraise ValueError('of rank 0')"
    jid = site.submit(train)
    assert site.end(jid) == ("FAILED", 0)
    assert "last words\n" in site.log(jid) and site.log(jid).splitlines()[-1] == "ValueError: of rank 0"
