#!/usr/bin/env bash
# rank.sh RECIPE: one rank of a training, as torchrun starts it; its output goes to $HERMES3_LOGS/rank_R.log.
set -euo pipefail
# Into the file itself: the reader of a pipe would be killed with the rank, before its last lines
exec >"$HERMES3_LOGS/rank_$RANK.log" 2>&1
echo "${SLURMD_NODENAME:-$(hostname)}" >"$HERMES3_LOGS/rank_$RANK.node"
# On this node, as env.sh does on the first
(umask 077 && mkdir -p "$TRITON_CACHE_DIR") && [[ -O $TRITON_CACHE_DIR ]] || export TRITON_CACHE_DIR=$HOME/.triton/cache
# exec: signals of torchrun and Slurm reach Python itself
exec python -u -m axolotl.cli.train "$1"
