#!/usr/bin/env bash
# preflight.sh RECIPE LOGS/JOB/attempt_N [SRUN OPTIONS]: look at every node of this job before it trains (docs/slurm.md).
# Exit code 0: train. 3: nodes are bad, and this job is queued again without them: end. 4: it is ended from outside. Else:
# all nodes have the fault.
set -euo pipefail
recipe=$1 logs=$2
shift 2
if [[ ${HERMES3_PREFLIGHT:-} == skip ]]; then
  echo "preflight: skipped (HERMES3_PREFLIGHT)"
  exit 0
fi
code=0
python -m hermes3.slurm.preflight "$recipe" "$logs" "$@" || code=$?
[[ $code == 3 ]] || exit "$code"

trap '' TERM # which the requeue sends (hermes3/slurm/queue.py); the script that calls this one must ignore it, too
python -m hermes3.slurm.queue || exit 1
exit 3
