"""A folder to submit launch/train.sbatch from whose training takes a second: the scripts and Slurm are the real ones.
In place of Axolotl stands a module `axolotl` whose training is given as Python text; in place of torchrun, which loads
torch for five seconds, a script that starts the node's one rank; in place of the preflight, one that finds nothing."""

import os
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
TEXTS = yaml.safe_load(Path(__file__).with_suffix(".yml").read_text())


class QuickSite:
    """`submit` a training of `nodes` nodes; `log` is what its job has printed."""

    def __init__(self, folder: Path, slurm):
        self.folder, self.slurm, self.stamp = folder, slurm, folder / "stage.done"
        for name in ("launch", "logs", "bin", "axolotl/cli", "prepared"):
            (folder / name).mkdir(parents=True)
        for name in ("train.sbatch", "step.sbatch", "eval.sbatch", "mix.sbatch", "env.sh", "job.sh", "rank.sh"):
            (folder / "launch" / name).symlink_to(ROOT / "launch" / name)
        self.script("launch/preflight.sh", "")
        self.script("bin/torchrun", TEXTS["torchrun"])
        for name in ("axolotl/__init__.py", "axolotl/cli/__init__.py"):
            (folder / name).touch()
        (folder / "axolotl/cli/preprocess.py").write_text("import socket\nprint('on', socket.gethostname())\n")

    def script(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (self.folder / name).chmod(0o755)

    def recipe(self, nodes: int = 2, gpu: str = "cpu", gpus_per_node: int = 1, **more: object) -> Path:
        hardware = {"gpu": gpu, "nodes": nodes, "gpus_per_node": gpus_per_node}
        recipe = {"hardware": hardware, "dataset_prepared_path": "prepared", "output_dir": "out"}
        path = self.folder / "recipe.yml"
        path.write_text(yaml.safe_dump(recipe | more))
        return path

    def submit(self, train: str, *options: str, recipe: Path | None = None, **env: str) -> int:
        """Submit a recipe (two CPU nodes) that trains by the Python text `train`; the job's id."""
        (self.folder / "axolotl/cli/train.py").write_text(TEXTS["train"] + train)
        return self.command(*(options or ["--nodes=2"]), "launch/train.sbatch", recipe or self.recipe(), **env)

    def command(self, *words: object, stage: bool = False, **env: str) -> int:
        """`sbatch words`, as typed in a task of an array; the job's id. `stage`: of a pipeline, with `self.stamp`."""
        env |= {"HERMES3_STAMP": str(self.stamp)} if stage else {}
        path = f"{self.folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        env |= {"PATH": path, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", "SLURM_ARRAY_TASK_ID": "9"}
        return self.slurm.submit(*words, cwd=self.folder, env=env)

    def notice(self, jid: int) -> None:
        """What Slurm sends ahead of the time limit."""
        self.slurm.run("scancel", "--batch", "--signal=USR1", jid)

    def log(self, jid: int) -> str:
        return "".join(log.read_text() for log in self.folder.glob(f"logs/*-{jid}.log"))

    def wait_log(self, jid: int, text: str) -> None:
        self.slurm.until(lambda: text in self.log(jid), 300, f"{text!r} in the log of job {jid}")

    def end(self, jid: int, timeout: float = 300) -> tuple[str, int]:
        """State and number of requeues, once the job has ended."""
        job = self.slurm.wait_job(jid, timeout=timeout)
        return job["JobState"], int(job["Restarts"])
