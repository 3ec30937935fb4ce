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

# Only a pending job can be given nodes to exclude, and only a running one can call for itself. A requeued job is pending
# while its script still runs: for KillWait seconds (30 by default) after the TERM that a requeue sends, which is
# ignored here, and must be by the script that calls this one. The job cannot start before that has ended, so the next
# attempt has the new list.
trap '' TERM
bad=$(cut -f1 "$logs/../bad_nodes" | sort -u | paste -sd,)
excluded=$(scontrol -o show job "$SLURM_JOB_ID" | grep -oP ' ExcNodeList=\K\S+')
[[ $excluded == '(null)' ]] || bad=$excluded,$bad
echo "preflight: queued again without $bad; pending for long means that the partition has no other nodes"
scontrol requeue "$SLURM_JOB_ID"
scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=$bad"
exit 3
