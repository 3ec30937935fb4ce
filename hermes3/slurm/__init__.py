"""Launching on Slurm: what the scripts in launch/ and `hermes3 launch` need of Python. `queue` alone calls Slurm."""
