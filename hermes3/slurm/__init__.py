"""Launching on Slurm. The scripts themselves are in launch/; here is what they and `hermes3 launch` need of Python.

- `submit` (one run), `resize` (on other nodes), `chain` (the stages of a pipeline), `states` (which are complete),
  `pipeline` (their submission), `queue` (squeue, sbatch, scancel), `cli`: what a user types on the login node;
- `declared`, `stage`, `verdict`: what a job asks and notes;
- `preflight`, `node_check`, `gpu_health`, `allreduce`, `srun`, `judge`: what every node answers before a training.
"""
