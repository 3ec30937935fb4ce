"""`python -m bench.pipeline_kills`: the pipeline of the tiny recipes on a virtual Slurm, killed at random moments.

A kill cancels every job, cancels one, or ends a node without a word; then the same `hermes3 launch` is typed again. The
models, the chosen epoch and the scores must be those of a pipeline that nothing disturbed, bit for bit. Needs root.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the virtual Slurm

import slurm_site  # noqa: E402
from slurm_lab import SlurmLab  # noqa: E402

MODELS = ("sft/model.safetensors", "dpo/adapter_model.safetensors", "dpo/merged/model.safetensors")
WAIT = 25  # seconds between kills, the mean of an exponential
PATIENCE = 3600


class Pipeline:
    def __init__(self, lab: SlurmLab, folder: Path, tiny: Path):
        self.lab, self.site = lab, slurm_site.make(folder)
        slurm_site.small_chain(self.site, tiny / "base", tiny / "data")

    def launch(self) -> bool:
        """Type the command; whether every stage is complete."""
        threads = {"OMP_NUM_THREADS": "1"}
        said = slurm_site.launch(self.lab, self.site, "--pipeline", "small.yml", "--no-check", env=threads).stdout
        return {one["state"] for one in json.loads(said)["stages"]} == {"complete"}

    def kill(self, rng: random.Random) -> str:
        jobs = self.lab.run("squeue", "-h", "-t", "RUNNING", "-o", "%i").stdout.split()
        how = rng.choice(["all jobs", "a job", "a node"])
        if how == "all jobs" or not jobs:
            for job in self.lab.jobs():
                self.lab.run("scancel", job, check=False)
            return "all jobs"
        job = rng.choice(jobs)
        name = self.lab.job(int(job))["JobName"]
        if how == "a job":
            self.lab.run("scancel", job, check=False)
            return f"a job ({name})"
        with suppress(IndexError, KeyError):
            node = rng.choice(self.lab.hosts(int(job)))
            self.lab.kill_node(node)
            time.sleep(3)
            self.lab.start_node(node)
            time.sleep(5)
            self.lab.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        return f"a node ({name})"

    def active(self) -> bool:
        """Whether a job runs or will: not one that waits for a stage that was killed."""
        states = self.lab.run("squeue", "-h", "-o", "%T %r").stdout.splitlines()
        return any("DependencyNeverSatisfied" not in state for state in states)

    def left(self) -> dict[str, Any]:
        out = self.site / "outputs/tiny"
        report = json.loads((out / "report/report.json").read_text())
        scores = [(one["stage"], one["tasks"]) for one in report["evaluations"]]
        return {name: (out / name).read_bytes() for name in MODELS} | {"scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", type=Path, default=ROOT / "outputs/tiny", help="the demo's base model and data")
    options = parser.parse_args()
    rng, kills, begun = random.Random(options.seed), 0, time.monotonic()

    def note(text: str) -> None:
        print(f"{time.monotonic() - begun:6.0f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory() as folder, SlurmLab(Path(folder) / "slurm") as lab:
        whole, killed = (Pipeline(lab, Path(folder) / name, options.tiny.resolve()) for name in ("whole", "killed"))
        whole.launch()
        lab.until(lambda: not whole.active(), PATIENCE, "no job left", every=0.5)
        assert whole.launch(), "the undisturbed pipeline did not end"
        note("undisturbed: complete")
        while time.monotonic() - begun < PATIENCE and not killed.launch():
            end = time.monotonic() + rng.expovariate(1 / WAIT)
            while killed.active() and (kills == options.kills or time.monotonic() < end):
                time.sleep(0.5)
            if kills < options.kills and killed.active():
                kills += 1
                note(f"kill {kills}: {killed.kill(rng)}")
                lab.until(
                    lambda: "COMPLETING" not in lab.run("squeue", "-h", "-o", "%T").stdout, 120, "killed jobs gone"
                )
                time.sleep(2)
        one, other = whole.left(), killed.left()
        same = {name: one[name] == other[name] for name in one}
        note(f"{kills} kills, complete: {same}")
    sys.exit(not all(same.values()))


if __name__ == "__main__":
    assert os.geteuid() == 0, "the virtual Slurm needs root"
    main()
