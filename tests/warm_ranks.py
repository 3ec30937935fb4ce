"""Imported once by the server that forks the ranks of tests/ranks.py: what each of them would load or compile anew."""

import axolotl.cli.train
import deepspeed
import numpy as np
from axolotl.utils.samplers.multipack import pack_parallel
from datasets import Dataset
from ranks import IN_PROCESS

assert axolotl and deepspeed
for name, method in IN_PROCESS.items():
    setattr(Dataset, name, method)
# numba compiles the packer at its first use: four seconds
pack_parallel(np.array([2, 1]), bin_capacity=3, group_size=2, bin_size=2, num_processes=1)
