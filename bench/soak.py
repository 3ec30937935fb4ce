"""`make soak`: short trainings on a virtual Slurm of four nodes, with faults at random, for so many minutes.

Every training that completes must have the weights of one that nothing disturbed, bit for bit; every one that is
refused or fails must say why in its last line; none may wait for ever. Prints a line per training and per fault, writes
the log to outputs/soak/DATE.jsonl, and exits 1 where one of the three does not hold. Needs root, for the nodes'
networks and for a disk of 300 MB that can be filled.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the virtual Slurm, and its small mix

from slurm_lab import ENDED, SlurmLab  # noqa: E402
from small_mix import SEQUENCE_LEN, write_mix, write_recipe  # noqa: E402

PATIENCE = 1200  # seconds that a training may take with all its faults
WAIT = 12  # seconds between faults, the mean of an exponential
FAULTS = 3  # of one training, at most
OPTIONS = ("--nodes=2", "--signal=B:USR1@110")


class Soak:
    def __init__(self, lab: SlurmLab, site: Path, base: Path, seed: int, log: Path):
        self.lab, self.site, self.base, self.log = lab, site, base, log
        self.random = random.Random(seed)
        (site / "launch").symlink_to(ROOT / "launch")
        (site / "logs").mkdir()
        lengths = np.random.default_rng(2).lognormal(np.log(20), 0.6, 60).clip(6, SEQUENCE_LEN).astype(int)
        self.mix = write_mix(site / "mix", lengths.tolist())

    def note(self, **what: object) -> None:
        line = {"time": datetime.now().strftime("%H:%M:%S"), **what}
        print("  ".join(f"{key}={value}" for key, value in line.items()), flush=True)
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def recipe(self, name: str) -> Path:
        """36 steps on two nodes of one process, a restart point every 8; its output lies on the small disk."""
        changes = {"logging_steps": 1, "save_strategy": "epoch", "restart_steps": 8, "warmup_steps": 2}
        changes |= {"hardware": {"gpu": "cpu", "nodes": 2, "gpus_per_node": 1}, "save_total_limit": 1}
        return write_recipe(self.site / "disk" / name, self.mix, self.base, **changes)

    def submit(self, recipe: Path) -> int:
        env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        return self.lab.submit(*OPTIONS, "launch/train.sbatch", recipe, cwd=self.site, env=env)

    def last_words(self, jid: int) -> str:
        lines = [line for log in self.site.glob(f"logs/*-{jid}.log") for line in log.read_text().splitlines()]
        return lines[-1] if lines else ""

    # faults: each is given the job and its recipe, and returns once the world is as before

    def kill_rank(self, jid: int, recipe: Path) -> None:
        with suppress(IndexError, ProcessLookupError):  # none trains just now
            os.kill(self._rank(recipe), signal.SIGKILL)

    def stop_rank(self, jid: int, recipe: Path) -> None:
        with suppress(IndexError, ProcessLookupError):
            os.kill(rank := self._rank(recipe), signal.SIGSTOP)
            time.sleep(15)
            os.kill(rank, signal.SIGCONT)

    def node_down(self, jid: int, recipe: Path) -> None:
        node = self._node(jid)
        self.lab.run("scontrol", "update", f"nodename={node}", "state=down", "reason=soak")
        time.sleep(10)
        self.lab.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)

    def reboot(self, jid: int, recipe: Path) -> None:
        node = self._node(jid)
        self.lab.kill_node(node)
        time.sleep(5)
        self.lab.start_node(node)
        time.sleep(5)
        self.lab.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)

    def controller_away(self, jid: int, recipe: Path) -> None:
        daemon = self.lab.daemons["slurmctld"]
        os.killpg(daemon.pid, signal.SIGSTOP)
        time.sleep(20)
        os.killpg(daemon.pid, signal.SIGCONT)

    def requeue(self, jid: int, recipe: Path) -> None:
        self.lab.run("scontrol", "requeue", jid, check=False)

    def notice(self, jid: int, recipe: Path) -> None:
        self.lab.run("scancel", "--batch", "--signal=USR1", jid, check=False)

    def disk_full(self, jid: int, recipe: Path) -> None:
        filler = self.site / "disk/filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(2**20))
        time.sleep(20)
        filler.unlink()

    def edit_recipe(self, jid: int, recipe: Path) -> None:
        """Another learning rate, and another attempt; put back once the job has ended."""
        text = recipe.read_text()
        recipe.write_text(yaml.safe_dump(yaml.safe_load(text) | {"learning_rate": 1.0e-5}))
        self.lab.run("scontrol", "requeue", jid, check=False)
        with suppress(TimeoutError):
            self.lab.wait_job(jid, timeout=240)
        recipe.write_text(text)

    def _node(self, jid: int) -> str:
        return self.random.choice(self.lab.hosts(jid))

    def _rank(self, recipe: Path) -> int:
        """One of the processes that train `recipe`, on whichever node; `IndexError` without any."""
        ours = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = process.joinpath("cmdline").read_bytes().split(b"\0")
                if {b"axolotl.cli.train", str(recipe).encode()} <= set(command):
                    ours.append(int(process.name))
        return self.random.choice(ours)

    # a training

    def run(self, name: str, faults: list[Callable]) -> tuple[str, Path]:
        """Submit, disturb, and go on until it has ended; submitted again, once, where an edited recipe was refused."""
        recipe, begun = self.recipe(name), time.monotonic()
        jid = self.submit(recipe)
        for fault in faults:
            end = time.monotonic() + self.random.expovariate(1 / WAIT)
            while time.monotonic() < end or self.lab.job(jid)["JobState"] not in ("RUNNING", *ENDED):
                if time.monotonic() > begun + PATIENCE:
                    break
                time.sleep(0.5)
            if self.lab.job(jid)["JobState"] in ENDED:
                break
            self.note(training=name, job=jid, fault=fault.__name__)
            fault(jid, recipe)
        state = self._end(jid)
        if state == "FAILED" and self.edit_recipe in faults:
            self.note(training=name, job=jid, state=state, words=self.last_words(jid))
            jid = self.submit(recipe)
            state = self._end(jid)
        job = self.lab.job(jid)
        seconds = round(time.monotonic() - begun)
        self.note(training=name, job=jid, state=state, restarts=job["Restarts"], seconds=seconds)
        return state if state == "COMPLETED" else f"{state}: {self.last_words(jid)}", recipe.parent / "out"

    def _end(self, jid: int) -> str:
        try:
            return self.lab.wait_job(jid, timeout=PATIENCE)["JobState"]
        except TimeoutError:
            reason = self.lab.job(jid)
            self.lab.run("scancel", jid, check=False)
            return f"ENDLESS ({reason['JobState']}, {reason.get('Reason')})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the faults and their times")
    parser.add_argument("--base", type=Path, default=ROOT / "outputs/tiny/base", help="the demo's base model")
    options = parser.parse_args()
    log = ROOT / f"outputs/soak/{datetime.now():%Y-%m-%d_%H%M}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    wrong, counts, end = [], {"same": 0, "refused": 0}, time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        site, disk = Path(folder) / "site", Path(folder) / "site/disk"
        disk.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", disk], check=True)  # before the nodes start
        try:
            with SlurmLab(Path(folder) / "slurm") as lab:
                soak = Soak(lab, site, options.base.resolve(), options.seed, log)
                state, out = soak.run("undisturbed", [])
                assert state == "COMPLETED", state
                undisturbed = (out / "model.safetensors").read_bytes()
                kinds = [soak.kill_rank, soak.stop_rank, soak.node_down, soak.reboot, soak.controller_away]
                kinds += [soak.requeue, soak.notice, soak.disk_full, soak.edit_recipe]
                n = 0
                while time.monotonic() < end:
                    n += 1
                    faults = [kinds[(n - 1) % len(kinds)]]  # each kind in turn, and others at random
                    faults += soak.random.choices(kinds, k=soak.random.randrange(FAULTS))
                    state, out = soak.run(f"training-{n}", faults)
                    same = state == "COMPLETED" and (out / "model.safetensors").read_bytes() == undisturbed
                    counts["same"] += same
                    if state.startswith("FAILED: hermes3") or state.startswith("FAILED: train"):
                        counts["refused"] += 1
                    elif not same:
                        wrong.append(f"training-{n}, {[one.__name__ for one in faults]}: {state}")
                    soak.note(training=f"training-{n}", faults=len(faults), same=same)
                    lab.reset()
                    shutil.rmtree(out)  # the disk is small
        finally:
            subprocess.run(["umount", "-l", disk])
    print(f"{n} trainings: {counts['same']} with the same weights, {counts['refused']} refused with a reason")
    print("\n".join(wrong) or "nothing wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
