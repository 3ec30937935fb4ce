"""What goes wrong in sbatch scripts does not in ours: seen on a real Slurm."""

import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def job(tmp_path, slurm):
    """Submit a script of a few lines; its id and its log."""

    def submit(body: str, *options: object) -> tuple[int, Path]:
        script, log = tmp_path / "job.sbatch", tmp_path / "job.log"
        script.write_text("#!/bin/bash\n" + textwrap.dedent(body))
        return slurm.submit("-D", tmp_path, "-o", log, *options, script), log

    return submit


def test_each_task_knows_its_own_node(slurm, job):
    """SLURM_NODEID is the task's: expanded in the script it would be the batch node's, 0 for all."""
    jid, log = job(
        """
        srun bash -c 'echo $SLURM_NODEID $(hostname) $CUDA_VISIBLE_DEVICES'
        srun bash -c "echo $SLURM_NODEID of the batch node"
        """,
        *("-N2", "--ntasks-per-node=1", "--gres=gpu:2"),
    )
    assert slurm.wait_job(jid)["JobState"] == "COMPLETED"
    lines = log.read_text().splitlines()
    assert sorted(lines[:2]) == ["0 n1 0,1", "1 n2 0,1"] and lines[2:] == ["0 of the batch node"] * 2
