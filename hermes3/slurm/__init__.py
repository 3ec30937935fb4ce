"""Launching on Slurm. The scripts are in launch/; here is what they and `hermes3 launch` need of Python.

- On the login node: `submit` (one run), `chain` (the stages of a pipeline), `pipeline` (their states and jobs), `cli`.
- In a job: `start` (may it train?), `record` (what a stage leaves), `verdict` (whose fault is it?).
- Before a training: `preflight` (all nodes), `node_check` (one node), `allreduce` (all ranks).
- `queue` is the one module that calls Slurm.
"""
