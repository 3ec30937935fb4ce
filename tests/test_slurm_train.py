"""Two nodes of a real Slurm train the tiny recipe through launch/train.sbatch, and survive what clusters do to jobs."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import ranks
import torch
from small_mix import SEQUENCE_LEN, write_mix, write_recipe

ROOT = Path(__file__).parents[1]
PLUGINS = ["hermes3.train.plugin.HermesPlugin", "ranks.Recorder", "held.Held"]
PATIENCE = 600  # seconds that an attempt may take on a busy machine; 30 on an idle one


def submit(slurm, recipe: Path, *options: str, hold: str = "") -> int:
    """Submit the training of a recipe from its site; the job's id."""
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "tests")}
    env |= {"OMP_NUM_THREADS": "1", "HOLD": hold, "HOLD_IN": str(recipe.parent)}
    return slurm.submit(*options, "launch/train.sbatch", recipe, cwd=recipe.parents[1], env=env)


def log_of(site: Path, jid: int) -> str:
    return "".join(path.read_text(errors="replace") for path in site.glob(f"logs/*-{jid}.log"))


def trained(slurm, site: Path, jid: int) -> dict[str, str]:
    job = slurm.wait_job(jid, timeout=PATIENCE)
    assert job["JobState"] == "COMPLETED", log_of(site, jid)[-5000:]
    return job


def kill(recipe: Path, rank: int) -> None:
    """SIGKILL to a rank that trains `recipe`, on whichever node it is."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            env = process.joinpath("environ").read_bytes().split(b"\0")
            command = process.joinpath("cmdline").read_bytes().split(b"\0")
            if {b"axolotl.cli.train", str(recipe).encode()} <= set(command) and f"RANK={rank}".encode() in env:
                os.kill(int(process.name), signal.SIGKILL)


def test_a_job_survives_all_that_ends_it_and_trains_the_same_model(slurm, base, tmp_path):
    """One job, a fault in each of four attempts: a killed rank, a lost node, a node that reads wrong, the time limit.
    Each loses the steps since its last checkpoint, the notice none; training goes on without the node that is
    broken."""
    site = tmp_path
    (site / "launch").symlink_to(ROOT / "launch")
    (site / "logs").mkdir()
    # 60 rows in 24 packs, 12 steps in each of 3 epochs
    lengths = np.random.default_rng(2).lognormal(np.log(20), 0.6, 60).clip(6, SEQUENCE_LEN).astype(int)
    keys = {"logging_steps": 1, "save_strategy": "epoch", "restart_steps": 8, "warmup_steps": 2, "plugins": PLUGINS}
    keys |= {"token_weighted_loss": True, "gradient_accumulation_steps": 1}
    keys |= {"hardware": {"gpu": "cpu", "nodes": 2, "gpus_per_node": 1}}
    mix = write_mix(site / "mix", lengths.tolist())
    undisturbed, path = (write_recipe(site / name, mix, base, **keys) for name in ("undisturbed", "survivor"))

    jid = submit(slurm, undisturbed)
    trained(slurm, site, jid)
    assert "Submitted batch job" in log_of(site, jid)  # by itself, for the two nodes that the recipe declares
    job, attempt = trained(slurm, site, jid + 1), site / f"logs/{jid + 1}/attempt_1"
    assert job["NumNodes"] == "2" and job["Restarts"] == "0"
    names = [*(f"node_{node}.log" for node in slurm.hosts(jid + 1)), "preprocess.log", "rank_0.log", "rank_1.log"]
    assert sorted(log.name for log in attempt.glob("*.log")) == names
    text = (attempt / "rank_0.log").read_text()
    assert text in log_of(site, jid + 1) and "Loading prepared dataset from disk" in text

    jid = submit(slurm, path, "--nodes=2", "--signal=B:USR1@110", hold="10,20,27,29")

    def held(step: int) -> None:
        files = [path.parent / f"held-{step}-{rank}" for rank in range(2)]
        slurm.until(lambda: all(map(Path.exists, files)), PATIENCE, f"job {jid}: both ranks held at step {step}")

    def free(step: int, broken: str = "") -> None:
        (path.parent / f"free-{step}.new").write_text(broken)
        (path.parent / f"free-{step}.new").rename(path.parent / f"free-{step}")

    held(10)
    kill(path, rank=1)
    free(10)

    held(20)
    slurm.run("scontrol", "update", f"nodename={slurm.hosts(jid)[-1]}", "state=down", "reason=test")
    free(20)

    held(27)
    bad = slurm.hosts(jid)[-1]
    free(27, broken=bad)

    held(29)
    hours, minutes, _ = slurm.job(jid)["RunTime"].split(":")
    # its time limit is in one or two minutes, within the notice that it has asked for
    slurm.run("scontrol", "update", f"jobid={jid}", f"timelimit={int(hours) * 60 + int(minutes) + 2}")
    slurm.until((site / f"logs/{jid}.stop").exists, PATIENCE, "the notice")
    free(29)
    slurm.until(lambda: "ended on notice" in log_of(site, jid), PATIENCE, "the end of attempt 4")
    slurm.run("scontrol", "update", f"jobid={jid}", "timelimit=60")

    job = trained(slurm, site, jid)
    assert job["Restarts"] == "4" and job["ExcNodeList"] == bad and bad not in slurm.hosts(jid)
    run = ranks.result(path, [0, 0])
    attempts = [range(1, 11), range(9, 21), range(17, 28), range(25, 31), range(31, 37)]
    assert [line["step"] for line in run.lines() if "step" in line] == [step for steps in attempts for step in steps]
    crashes = sorted(path.parent.name for path in site.glob(f"logs/{jid}/attempt_*/crash.json"))
    assert crashes == ["attempt_1", "attempt_3"]  # what Slurm and the notice ended counts for nothing
    ours, theirs = run.weights(), ranks.result(undisturbed, [0, 0]).weights()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
