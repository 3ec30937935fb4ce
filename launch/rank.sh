#!/usr/bin/env bash
# rank.sh RECIPE: one rank of a training, as torchrun starts it; its output goes to $HERMES3_LOGS/rank_R.log.
set -euo pipefail
log=$HERMES3_LOGS/rank_$RANK.log
if [[ $RANK == 0 ]]; then
  exec > >(tee "$log") 2>&1 # the job's log shows one rank: the others say the same
else
  exec >"$log" 2>&1
fi
# exec: signals of torchrun and Slurm reach Python itself
exec python -u -m axolotl.cli.train "$1"
