# shellcheck shell=bash disable=SC2034 # container is for those who source this
# What every job needs, sourced by the sbatch scripts from the repository's root. Edit it for your site: it is the one
# place. A value that is already set wins, so that `HF_HOME=/scratch/hf sbatch ...` does; but for the tracking's.

# Python: the repository's environment, on a file system that all nodes see. `module load` lines go above it.
if [[ -d .venv ]]; then
  export PATH=$PWD/.venv/bin:$PATH
fi
# Or a container (Enroot and Pyxis): options of the srun that starts the work on each node. The batch script itself only
# reads YAML, for which any Python 3.12 with pyyaml and pydantic will do.
#   container=(--container-image="$PWD/hermes3.sqsh" --container-mounts="$PWD:$PWD" --container-workdir="$PWD")
container=()

unset SLURM_EXPORT_ENV # SBATCH_EXPORT=NONE, as sites' modules set it, would keep all of this from srun's tasks
export AXOLOTL_DO_NOT_TRACK=1 # Axolotl calls home without it
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-true}
export PYTHONUNBUFFERED=${PYTHONUNBUFFERED:-1} # a rank that is killed has its last lines in its log

# Models and datasets are fetched before, on a login node: 128 ranks that ask the Hub at once are turned away, and
# compute nodes often have no network.
export HF_HOME=${HF_HOME:-$HOME/.cache/huggingface}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
# Without a network on the nodes: WANDB_MODE=offline, and `wandb sync` from a login node.
# Kernels are compiled on each node: a home folder over NFS is slow, and its locks do not hold across nodes.
# Code is loaded from there: it must be nobody else's (rank.sh looks on the other nodes).
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-${TMPDIR:-/tmp}/triton-$(id -u)}
(umask 077 && mkdir -p "$TRITON_CACHE_DIR") && [[ -O $TRITON_CACHE_DIR ]] || export TRITON_CACHE_DIR=$HOME/.triton/cache

# NCCL finds InfiniBand and NVLink by itself. Where it does not, NCCL_DEBUG=INFO says "NET/Socket" in a rank's log, and
# these help: the first network for the rendezvous (a name of `ip link`), the adapters for the data (`ibv_devinfo -l`).
#   export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0
#   export NCCL_IB_HCA=mlx5
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# The last 2,000 collectives of each rank, written when one times out: which rank was not there (docs/slurm.md)
export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000} TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}
